"""Sweeps: every combination once, shared work once, killed and resumed, tables that add up."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nni_robust.cli import main
from nni_robust.config import as_mapping
from nni_robust.errors import UserError
from nni_robust.experiments.schema import shipped
from nni_robust.experiments.sweep import load_sweep, run_sweep
from nni_robust.store import write_yaml

Write = Callable[..., str]


def sweep_file(folder: Path, **settings: Any) -> str:
    path = folder / "study.yml"
    content = {
        "name": "study",
        "base": "tiny.yml",
        "set": {"final": None, "strategy.candidates": 2},
        "axes": {
            "training": {"slow": {"evaluator.train.lr": 0.01}, "none": {"evaluator.train": None}},
            "seed": [0, 1],
        },
        "share_store": True,
    }
    path.write_text(yaml.safe_dump({**content, **settings}))
    return str(path)


@pytest.mark.parametrize("name", shipped("sweeps"))
def test_shipped_sweeps_are_sound(name: str) -> None:
    sweep, runs = load_sweep(name)
    assert sweep.name == name
    assert len({run.folder for run in runs}) == len(runs)


def test_every_combination_runs_once_and_the_tables_add_up(
    experiment_file: Write, tmp_path: Path
) -> None:
    experiment_file()
    file = sweep_file(tmp_path)
    lines: list[str] = []
    folder, rows = run_sweep(file, only={"seed": ["0"]}, report=lines.append)
    assert [row["status"] for row in rows].count("finished") == 2
    assert [row["status"] for row in rows].count("waiting") == 2
    # One supernet for both runs of this seed: equal work of different runs is done once.
    phases = [
        json.loads(path.read_text())["phase"] for path in (folder / "store").glob("*/record.json")
    ]
    assert phases.count("supernet") == 1
    assert phases.count("candidate") == 2 * 2

    before = {p: p.read_bytes() for p in folder.glob("*/run.json")}
    folder, rows = run_sweep(file, resume=True, report=lines.append)
    assert all(row["status"] == "finished" for row in rows)
    assert all(path.read_bytes() == content for path, content in before.items())

    with open(folder / "table.csv", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    summary = json.loads((folder / "summary.json").read_text())
    assert len(table) == 4
    assert len(summary) == 2
    entry = next(s for s in summary if s["training"] == "slow")
    bests = [float(row["best"]) for row in table if row["training"] == "slow"]
    assert entry["n"] == 2
    assert entry["best"] == pytest.approx(statistics.fmean(bests), abs=1e-6)
    assert entry["best sd"] == pytest.approx(statistics.stdev(bests), abs=1e-6)
    for run, row in zip(load_sweep(file)[1], table, strict=True):  # flags of the runs' own records
        records = (folder / run.folder / "candidates.jsonl").read_text()
        found = map(json.loads, records.splitlines())
        best = max((r for r in found if r["phase"] == "candidate"), key=_score)
        names = [reason.split(":")[0] for reason in best["reliability"]["unreliable"]]
        assert row["best reliability"].split(";") == (names or [""])


def test_figures_keep_their_flags(
    experiment_file: Write,
    lookup: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The best row of one table is one that failed a check; grid search finds it in every run."""
    records = []
    for code, (depth, width) in enumerate((d, w) for d in (1, 2) for w in (1, 2)):
        sample = {f"stage{i}/{what}": 1 for i in (1, 2, 3) for what in ("depth", "width")}
        sample |= {"stage1/depth": depth, "stage1/width": width}
        metrics = {"default": 0.1 + code / 10, "clean": 0.5, "test clean": 0.4}
        records.append({"sample": sample, "metrics": metrics, "test reliability": "precision"})
    for name, flag in (("good", ""), ("bad", "one-answer")):
        flags = ["", "dynamic", "", flag]
        lines = [{**r, "reliability": f} for r, f in zip(records, flags, strict=True)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = {"name": "wide-resnet", "depths": [2, 1, 1], "widths": [2, 1, 1]}
    experiment_file(
        **lookup
        | {
            "space": small,
            "task": {"dataset": "blank"},
            "evaluator": {"name": "tabular"},
            "strategy": "grid-search",
            "nni": {"engine": "sequential", "trials": 4},
        }
    )
    axes = {
        "table": {name: {"evaluator.table": str(tmp_path / name)} for name in ("bad", "good")},
        "seed": [0, 1],
    }
    file = sweep_file(tmp_path, axes=axes, set={}, compare={"axis": "table", "against": "good"})
    assert main(["sweep", file, "--out", "study"]) == 0
    told = capsys.readouterr().out
    assert "UNRELIABLE: 2 of 4 runs" in told
    assert "seed-0_table-bad (one-answer); seed-1_table-bad (one-answer)" in told
    bad, good = _csv("study/table.csv")[:2]
    assert (float(bad["best"]), bad["best reliability"]) == (0.4, "one-answer")
    assert good["best reliability"] == ""
    means = {row["table"]: row for row in _csv("study/summary.csv")}
    assert (means["bad"]["n"], means["bad"]["best unreliable"]) == ("2", "2")
    assert means["good"]["best unreliable"] == "0"
    compared = json.loads(Path("study/comparison.json").read_text())
    (sentence,) = (s for s in compared["sentences"] if "UNRELIABLE" in s)
    assert "bad (2 of 2 runs and 2 of 2 test figures: one-answer, precision)" in sentence
    lines = {row["strategy"]: row for row in _csv("study/comparison.csv")}
    assert lines["bad"]["unreliable runs"] == "2"
    assert lines["good"]["unreliable runs"] == "0"
    assert lines["good"]["test unreliable runs"] == "2"

    # Final networks have flags of their own, or none at all where their record lost them.
    for name, reliability in (
        ("seed-0", {"unreliable": ["zero-gradient: it has none", "dynamic: it does"]}),
        ("seed-1", None),
    ):
        network = {"label": "best", "metrics": {"clean": 0.5}, "reliability": reliability}
        final = {"networks": [network, {"label": "random", "metrics": {}}]}
        Path(f"study/{name}_table-bad/final.json").write_text(json.dumps(final))
    run_sweep(file, out="study", resume=True, report=lambda line: None)
    rows = _csv("study/table.csv")
    assert [row["best test reliability"] for row in rows] == [
        "zero-gradient;dynamic", "", "unknown", "",
    ]  # fmt: skip
    assert "random test reliability" not in rows[0]
    means = {row["table"]: row for row in _csv("study/summary.csv")}
    assert means["bad"]["best test unreliable"] == "1"
    assert means["bad"]["best test unknown"] == "1"


def _score(record: dict[str, Any]) -> tuple[float, float, int]:
    metrics = record["metrics"]
    return metrics["default"], -metrics["macs"], -record["index"]


def _csv(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_a_failed_run_ends_no_other(
    experiment_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment_file()
    axes = {"rate": {"good": {}, "bad": {"evaluator.train.batch_size": 100000}}}
    file = sweep_file(tmp_path, axes=axes)
    assert main(["sweep", file, "--out", "study"]) == 1
    assert "batch_size: 100000 is not allowed" in capsys.readouterr().out
    with open("study/table.csv", encoding="utf-8") as f:
        states = {row["rate"]: row["status"] for row in csv.DictReader(f)}
    assert states["good"] == "finished"
    assert states["bad"].startswith("evaluator.train.batch_size")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"axes": {}}, "at least one axis"),
        ({"name": "../evil"}, "name: '../evil' is not allowed; a plain folder name"),
        ({"axes": {"seed": [0, 0]}}, "look the same"),
        ({"axes": {"strategy.candidate": [1]}}, "did you mean 'candidates'"),
        ({"base": "nothing"}, "no experiment 'nothing'"),
        ({"axis": {}}, "did you mean 'axes'"),
        ({"compare": {"axis": "seed", "against": "7"}}, "compare.against: '7'"),
    ],
)
def test_mistakes_cost_one_sentence(
    experiment_file: Write, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    experiment_file()
    with pytest.raises(UserError, match=sentence):
        load_sweep(sweep_file(tmp_path, **settings))


def test_a_folder_of_another_sweep_is_refused(experiment_file: Write, tmp_path: Path) -> None:
    experiment_file()
    axes = {"seed": [0]}
    (tmp_path / "study").mkdir()
    first, _ = load_sweep(sweep_file(tmp_path, axes=axes))
    write_yaml("study/sweep.yaml", as_mapping(first))
    with pytest.raises(UserError, match="is not empty"):
        run_sweep(sweep_file(tmp_path, axes=axes), out="study")
    changed = sweep_file(tmp_path, axes=axes, set={"strategy.candidates": 1})
    with pytest.raises(UserError, match="set was"):
        run_sweep(changed, out="study", resume=True)


@pytest.mark.timeout(300)
def test_a_terminated_sweep_leaves_no_process_and_goes_on(
    experiment_file: Write, tmp_path: Path
) -> None:
    experiment_file()
    slow = {"final": None, "strategy.supernet.epochs": 500}
    file = sweep_file(tmp_path, set=slow, axes={"seed": [0, 1]}, share_store=False)
    command = [sys.executable, "-m", "nni_robust", "sweep", file, "--out", "study", "--jobs", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    end = time.monotonic() + 200
    # The second run may only just begin.
    while not list((tmp_path / "study").glob("*/store/*/checkpoints/*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    process.terminate()
    assert process.wait(60) == 130
    group = [p for p in psutil.process_iter() if _group(p.pid) == process.pid]
    psutil.wait_procs(group, timeout=30)
    assert not [p for p in group if p.is_running()]
    states = {json.loads(p.read_text())["status"] for p in tmp_path.glob("study/*/run.json")}
    assert states == {"interrupted"}


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
