"""The other door: nnictl starts, stops, resumes and exports the same search."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.experiments import run_experiment
from nni_robust.nni_adapter.job import Deferred, refuse_pickle
from nni_robust.store import read_json, read_records

Write = Callable[..., str]

SETTINGS: dict[str, Any] = {"final": None, "nni": {"concurrency": 2}}


def nnictl(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("nnictl")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)


def status(experiment: str) -> str:
    listed = nnictl("experiment", "list", "--all")
    line = next(line for line in listed.splitlines() if f"Id: {experiment}" in line)
    return line.partition("Status: ")[2].split()[0]


@pytest.fixture
def started(experiment_file: Write, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A search started by nnictl: its run folder and NNI's id."""
    run = tmp_path / "run"
    assert main(["nni-config", experiment_file(**SETTINGS), "--out", str(run)]) == 0
    nnictl("create", "--config", str(run / "nnictl.yml"), "--port", free_port())
    experiment = next(p.name for p in (run / "nni").iterdir() if not p.is_symlink())
    yield run, experiment
    nnictl("stop", experiment)


def samples(run: Path) -> dict[int, Any]:
    return {r["index"]: r["sample"] for r in read_records(run / "candidates.jsonl")}


def test_both_doors_lead_to_the_same_architectures(
    started: tuple[Path, str], tmp_path: Path
) -> None:
    run, experiment = started
    wait_until(lambda: status(experiment) == "DONE")
    here = run_experiment(
        str(tmp_path / "tiny.yml"),
        out="other",
        overrides=["nni.engine=sequential", "nni.concurrency=1"],
        report=lambda line: None,
    )
    assert samples(run) == samples(here)
    assert yaml.safe_load((run / "best.yaml").read_text())["space"] == "robnet"
    assert read_json(run / "run.json")["status"] == "finished"
    assert (run / "report.html").is_file()

    nnictl("experiment", "export", experiment, "--filename", "all.csv", "--type", "csv")
    with open("all.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    exported = {row["code"]: float(row["default"]) for row in rows if row["phase"] == "candidate"}
    found = read_records(run / "candidates.jsonl")
    assert exported == {
        r["code"]: r["metrics"]["default"] for r in found if r["phase"] == "candidate"
    }


@pytest.mark.slow
def test_stopped_by_nnictl_and_resumed(started: tuple[Path, str]) -> None:
    run, experiment = started
    wait_until(lambda: len(read_records(run / "candidates.jsonl")) >= 2)  # supernet, a candidate
    before = read_records(run / "candidates.jsonl")
    nnictl("stop", experiment)
    wait_until(lambda: status(experiment) == "STOPPED")
    nnictl("resume", experiment, "--port", free_port())
    wait_until(lambda: status(experiment) == "DONE")
    after = read_records(run / "candidates.jsonl")
    assert after[: len(before)] == before
    assert sorted(r["index"] for r in after) == [0, 1, 2, 3]
    listed = nnictl("trial", "ls", experiment)
    trials = json.loads(listed[listed.index("[") :])
    jobs = [json.loads(t["hyperParameters"][0])["parameters"]["job"] for t in trials]
    assert len(set(jobs)) == len(jobs)  # nothing was asked for twice


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"nni": {"engine": "sequential"}}, "nni.engine: 'sequential' is not allowed"),
        ({"strategy": {"name": "random"}, "nni": {}}, "nni.trials is missing"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    experiment_file: Write,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    sentence: str,
) -> None:
    assert main(["nni-config", experiment_file(**sections), "--out", "run"]) == 2
    assert sentence in capsys.readouterr().err
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
