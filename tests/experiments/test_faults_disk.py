"""A disk that fills up: the run ends with one sentence, nothing is damaged, and it can go on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from nni_robust.experiments import run_experiment
from nni_robust.store import Store, read_json, read_records

Write = Callable[..., str]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command, and so no small file system to fill")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - leave)))
    return filler


def plain(record: dict[str, Any]) -> dict[str, Any]:
    metrics = {k: v for k, v in record["metrics"].items() if k != "seconds"}
    return {**{k: record[k] for k in ("phase", "key", "sample", "status")}, "metrics": metrics}


def whole(run: Path) -> None:
    """Every file can be read by others than us."""
    for path in run.rglob("*.json"):
        json.loads(path.read_text())
    for path in run.rglob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            json.loads(line)
    for path in run.rglob("*.safetensors"):
        with safe_open(path, "np") as f:
            assert all(f.get_tensor(name) is not None for name in list(f.keys()))


# Full at once; when the supernet is kept; when a candidate is.
@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(8 << 10, marks=pytest.mark.slow),
        100 << 10,
        pytest.param(200 << 10, marks=pytest.mark.slow),
        pytest.param(400 << 10, marks=pytest.mark.slow),
    ],
)
def test_full_disk(experiment_file: Write, tmp_path: Path, small_disk: Path, leave: int) -> None:
    file = experiment_file(final=None)
    run = small_disk / "run"
    filler = fill(small_disk, leave)
    command = [sys.executable, "-m", "nni_robust", "run", file, "--out", str(run)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    said = ended.stderr.splitlines()
    assert said[-1].startswith(f"error: no space is left on the disk of '{run}")
    assert "Traceback" not in ended.stdout + ended.stderr
    whole(run)
    records = read_records(run / "candidates.jsonl")
    kept = {r["key"]: Store(run / "store").result(r["key"]) for r in records}

    filler.unlink()
    run_experiment(file, out=str(run), resume=True, html=False, report=lambda line: None)
    assert read_json(run / "run.json")["status"] == "finished"
    there = run_experiment(file, out="there", html=False, report=lambda line: None)
    found, expected = (
        [plain(r) for r in read_records(folder / "candidates.jsonl") if r["status"] == "ok"]
        for folder in (run, there)
    )
    assert found == expected
    for key, record in kept.items():
        if record is not None:
            assert Store(run / "store").result(key) == record  # nothing was done again
    whole(run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_disk_under_the_training_service(
    experiment_file: Write, tmp_path: Path, small_disk: Path
) -> None:
    """NNI's manager and its database meet the full disk as well."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    file = experiment_file(nni={"engine": "ts", "concurrency": 1}, final=None)
    run = small_disk / "run"
    filler = fill(small_disk, 300 << 10)
    command = [sys.executable, "-m", "nni_robust", "run", file, "--out", str(run), "--port", port]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: no space is left on the disk of")
    assert "Traceback" not in ended.stdout + ended.stderr
    whole(run)
    filler.unlink()
    ended = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    records = [r for r in read_records(run / "candidates.jsonl") if r["status"] == "ok"]
    assert len(records) == 4
