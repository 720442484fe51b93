"""The other door: nnictl starts, stops, shows, resumes and exports the same search."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.experiments import run_experiment
from nni_robust.nni_adapter.job import Deferred, refuse_pickle
from nni_robust.store import read_json, read_records

Write = Callable[..., str]

SETTINGS: dict[str, Any] = {"final": None, "nni": {"concurrency": 2}}

#: Four look-ups in the table of trained networks that comes with the package.
LOOK_UPS: dict[str, Any] = {
    "task": {
        "threat": {"eps": 0.1},
        "attack": "pgd10",
        "validation": 0.5,
        "train_limit": 512,
    },
    "space": {
        "name": "wide-resnet",
        "depths": [2, 2, 2],
        "widths": [3, 3, 3],
        "stem_channels": 8,
        "base_channels": [4, 8, 16],
    },
    "strategy": {
        "name": "regularized-evolution",
        "population_size": 2,
        "sample_size": 2,
        "mutation_prob": 0.4,
    },
    "evaluator": {"name": "tabular", "table": "wrn-digits"},
    "final": None,
    "nni": {"engine": "sequential", "trials": 4},
}


@pytest.fixture
def started(experiment_file: Write, nnictl: Any, tmp_path: Path) -> tuple[Path, str]:
    """A search started by nnictl: its run folder and NNI's id."""
    run = tmp_path / "run"
    assert main(["nni-config", experiment_file(**SETTINGS), "--out", str(run)]) == 0
    return run, nnictl.create(run)


def sequentially(folder: Path) -> Path:
    """The same file through the other door, without processes."""
    return run_experiment(
        str(folder / "tiny.yml"),
        out="other",
        overrides=["nni.engine=sequential", "nni.concurrency=1"],
        report=lambda line: None,
    )


def samples(run: Path) -> dict[int, Any]:
    return {r["index"]: r["sample"] for r in read_records(run / "candidates.jsonl")}


def exported(nnictl: Any, experiment: str) -> list[dict[str, Any]]:
    """What both kinds of ``nnictl experiment export`` say of each trial; they must agree."""
    nnictl("experiment", "export", experiment, "--filename", "all.csv", "--type", "csv")
    nnictl("experiment", "export", experiment, "--filename", "all.json", "--type", "json")
    with open("all.csv", encoding="utf-8") as f:
        rows = {row["trialJobId"]: row for row in csv.DictReader(f)}
    entries = json.loads(Path("all.json").read_text(encoding="utf-8"))
    assert {e["trialJobId"] for e in entries} == set(rows)
    for entry in entries:
        value = json.loads(entry["value"])
        flat = {**entry["parameter"], **value, "trialJobId": entry["trialJobId"]}
        assert {k: v for k, v in rows[entry["trialJobId"]].items() if v} == {
            k: str(v) for k, v in flat.items()
        }
        entry["value"] = value
    return entries


def test_both_doors_lead_to_the_same_architectures(
    started: tuple[Path, str], nnictl: Any, tmp_path: Path
) -> None:
    run, experiment = started
    nnictl.wait(experiment)
    here = sequentially(tmp_path)
    assert samples(run) == samples(here)
    assert yaml.safe_load((run / "best.yaml").read_text())["space"] == "robnet"
    assert read_json(run / "run.json")["status"] == "finished"
    assert (run / "report.html").is_file()
    found = {r["code"]: r["metrics"] for r in read_records(run / "candidates.jsonl")}
    entries = exported(nnictl, experiment)
    assert {e["parameter"].get("code") for e in entries} == set(found)
    for entry in entries:
        record = found[entry["parameter"].get("code")]
        assert {k: entry["value"][k] for k in record} == record


def test_a_registered_tuner_and_every_command(
    experiment_file: Write, nnictl: Any, tmp_path: Path
) -> None:
    """NNI's regularized evolution on a table: every look-up is a trial there."""
    run = tmp_path / "run"
    file = experiment_file(**LOOK_UPS)
    assert main(["nni-config", file, "--out", str(run), "--registered"]) == 0
    nnictl("algo", "register", "--meta", str(run / "algo.yml"))
    assert "ExperimentTuner" in nnictl("algo", "show", "NniRobust")
    experiment = nnictl.create(run)
    nnictl.wait(experiment)
    nnictl("algo", "unregister", "NniRobust")
    assert "NniRobust" not in nnictl("algo", "list")

    here = sequentially(tmp_path)
    theirs = read_records(run / "candidates.jsonl")
    ours = read_records(here / "candidates.jsonl")
    assert [r["sample"] for r in theirs] == [r["sample"] for r in ours]
    assert len(theirs) == 4

    assert json.loads(nnictl("experiment", "status", experiment))["status"] == "DONE"
    assert f"Id: {experiment}" in nnictl("experiment", "list")
    profile = json.loads(nnictl("experiment", "show", experiment))
    assert profile["params"]["searchSpace"]["stage1.depth"] == {"_type": "choice", "_value": [1, 2]}
    trials = nnictl.trials(experiment)
    assert [t["status"] for t in trials] == ["SUCCEEDED"] * 4
    entries = {e["trialJobId"]: e for e in exported(nnictl, experiment)}
    for trial, record in zip(trials, ours, strict=True):
        entry = entries[trial["trialJobId"]]
        shown = {k: v for k, v in entry["parameter"].items() if k.startswith("stage")}
        assert shown == {k.replace("/", "."): v for k, v in record["sample"].items()}
        assert entry["value"]["robust"] == record["metrics"]["default"]


@pytest.mark.slow
def test_stopped_shown_and_resumed(
    started: tuple[Path, str],
    nnictl: Any,
    wait_until: Callable[..., None],
    free_port: Callable[[], int],
) -> None:
    run, experiment = started
    wait_until(lambda: len(read_records(run / "candidates.jsonl")) >= 2)  # supernet, a candidate
    nnictl("stop", experiment)
    wait_until(lambda: nnictl.status(experiment) == "STOPPED")
    before = read_records(run / "candidates.jsonl")

    port = free_port()
    nnictl("view", experiment, "--port", str(port))
    assert nnictl.status(experiment) == "VIEWED"
    shown = requests.get(f"http://127.0.0.1:{port}/api/v1/nni/trial-jobs", timeout=20).json()
    ended = [trial for trial in shown if trial["status"] == "SUCCEEDED"]
    assert len(ended) >= len(before)
    nnictl("stop", experiment)
    wait_until(lambda: nnictl.status(experiment) == "STOPPED")
    assert read_records(run / "candidates.jsonl") == before

    nnictl.resume(experiment, free_port())
    nnictl.wait(experiment)
    after = read_records(run / "candidates.jsonl")
    assert after[: len(before)] == before
    assert sorted(r["index"] for r in after) == [0, 1, 2, 3]
    jobs = [
        json.loads(t["hyperParameters"][0])["parameters"]["job"] for t in nnictl.trials(experiment)
    ]
    assert len(set(jobs)) == len(jobs)  # nothing was asked for twice


def test_mistakes_are_told_before_anything_starts(
    experiment_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment_file(strategy={"name": "random"}, nni={})
    assert main(["nni-config", file, "--out", "run"]) == 2
    assert "nni.trials is missing" in capsys.readouterr().err
    assert not os.path.exists("run/nnictl.yml")


def test_parameters_that_come_later_are_counted_but_not_sent() -> None:
    found = Deferred(3)
    found.append({"a": 1})
    assert len(found) == 3
    assert list(found) == [{"a": 1}]


@pytest.mark.parametrize("text", ['{"f": "bytes:gASV"}', '{"x": {"__nni_obj__": "gASV"}}'])
def test_a_pickle_in_a_job_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="holds a pickle"):
        refuse_pickle(text, "the job")
