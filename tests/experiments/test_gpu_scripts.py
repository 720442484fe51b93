"""The benchmarks that await a GPU run on a CPU at reduced size, and go on where they stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[2] / "experiments" / "benchmarks" / "gpu"


def run(script: str, out: Path, *more: str, fails: bool = False) -> str:
    command = [sys.executable, str(SCRIPTS / script), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr[-2000:]
    return done.stderr if fails else done.stdout


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def test_attack_epoch(tmp_path: Path) -> None:
    quick = ["--quick", "--device", "cpu", "--networks", "resnet18", "--batch", "2", "--turns", "1"]
    run("attack_epoch.py", tmp_path, *quick)
    found = read(tmp_path / "attack_epoch.json")
    assert found["matrix rate, TFLOP/s"] > 0
    forms = found["resnet18, PGD-10 training"]
    assert {"torchattacks, float32", "ours, float32", "ours, bf16, fold, graph"} <= forms.keys()
    ratio = forms["ours, bf16"]["times faster than torchattacks"]
    theirs, ours = (forms[k]["seconds an epoch"] for k in ("torchattacks, float32", "ours, bf16"))
    assert abs(ratio - theirs / ours) < 0.01 + 0.01 * ratio
    part = found["resnet18, PGD-10"]
    for form in ("ours, float32", "ours, bf16, fold"):
        rate = 10 * 4 * part["macs of a picture"] * 2 / part[form]["seconds"] / 1e12
        assert abs(part[form]["TFLOP/s"] - rate) <= 0.006
    assert found["left_out"] == ["resnet18, ours, bf16, fold, compiled: quick"]


def test_train_figures_go_on(tmp_path: Path) -> None:
    quick = ["--quick", "--device", "cpu", "--networks", "resnet18", "--attacks"]
    run("train_figures.py", tmp_path, *quick, "pgd20", "--pictures", "8")
    first = read(tmp_path / "figures.json")["networks"]["resnet18"]
    assert first["trained epochs"] == first["epochs"] == 2
    assert first["pgd20"]["pictures"] == 8
    assert 0 <= first["pgd20"]["robust"] <= first["pgd20"]["clean"] <= 8
    weights = (tmp_path / "resnet18" / "weights.safetensors").stat().st_mtime_ns
    # The training is not done again, eight more pictures are, and another attack is added.
    run("train_figures.py", tmp_path, *quick, "pgd20,fgsm", "--pictures", "16")
    second = read(tmp_path / "figures.json")["networks"]["resnet18"]
    assert (tmp_path / "resnet18" / "weights.safetensors").stat().st_mtime_ns == weights
    assert second["training seconds"] == first["training seconds"]
    assert (second["pgd20"]["pictures"], second["fgsm"]["pictures"]) == (16, 16)
    assert second["pgd20"]["clean"] >= first["pgd20"]["clean"]
    assert "| resnet18 | 2 of 2 |" in (tmp_path / "figures.md").read_text(encoding="utf-8")


def test_says_what_is_missing(tmp_path: Path) -> None:
    said = run("train_figures.py", tmp_path, "--device", "cpu", fails=True)
    assert "--archive is needed" in said
    wrong = {
        "unknown architecture 'nosuch'": ["--networks", "nosuch"],
        "there is no file 'absent.tar.xz'": ["--archive", "absent.tar.xz"],
        "--device 'foo' is not allowed": ["--device", "foo"],
    }
    for told, arguments in wrong.items():
        quick = ["--quick", "--device", "cpu", *arguments]
        said = run("train_figures.py", tmp_path, *quick, fails=True)
        assert told in said
        assert "Traceback" not in said
