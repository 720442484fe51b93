"""A run under NNI's training service, killed and resumed: nothing lost, nothing twice.

The whole thing with real processes: node manager, trials, web server. One run serves several
checks, because every trial process costs seconds of imports.
"""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nni_robust.experiments import run_experiment
from nni_robust.store import read_json, read_records

Write = Callable[..., str]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Started:
    """``nni-robust run`` in a process of its own, its output in a file."""

    def __init__(self, file: str, run: Path, port: int, *more: str) -> None:
        command = [sys.executable, "-m", "nni_robust", "run", file, "--out", str(run)]
        self.log = run.with_name(f"log-{time.monotonic_ns()}.txt")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), *more],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self, seconds: float = 300) -> str:
        """Wait for its end and return what it printed."""
        self.process.wait(timeout=seconds)
        return self.log.read_text()


def wait_for_records(run: Path, number: int, started: Started) -> None:
    end = time.monotonic() + 240
    while len(read_records(run / "candidates.jsonl")) < number:
        assert started.process.poll() is None, started.log.read_text()
        assert time.monotonic() < end, "the run did not get on"
        time.sleep(0.1)


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on when, where and how fast a trial ran."""
    metrics = {k: v for k, v in record["metrics"].items() if k != "seconds"}
    return {**{k: record[k] for k in ("phase", "key", "sample", "status")}, "metrics": metrics}


def computed(run: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in run.glob("store/*/record.json")}


def pairs_in_nni(run: Path) -> dict[str, dict[str, Any]]:
    """Trial id to the parameters that NNI's own database, and so the web UI, shows for it."""
    shown = {}
    for database in run.glob("nni/*/db/nni.sqlite"):
        with sqlite3.connect(database) as connection:
            rows = connection.execute(
                "select trialJobId, data from TrialJobEvent where data is not null"
            ).fetchall()
        for trial, data in rows:
            shown[trial] = json.loads(data)["parameters"]
    return shown


@pytest.mark.timeout(900)
def test_kill_9_then_resume(experiment_file: Write, tmp_path: Path) -> None:
    ts = {"engine": "ts", "concurrency": 2}
    file = experiment_file(nni=ts)
    run, port = tmp_path / "run", free_port()

    killed = Started(file, run, port)
    wait_for_records(run, 2, killed)  # the supernet and one candidate; others are running
    killed.process.kill()
    killed.ended()
    finished = computed(run)
    earlier = read_records(run / "candidates.jsonl")
    assert len(earlier) < 4, "killed too late to show anything"
    state = read_json(run / "run.json")
    assert state["status"] == "running"

    resumed = Started(file, run, port, "--resume")
    output = resumed.ended()
    assert resumed.process.returncode == 0, output
    assert f"stopped NNI experiment {state['nni'][0]['id']}" in output

    # Nothing of before was done again, nothing is there twice, nothing is missing.
    after = computed(run)
    assert {key: after[key] for key in finished} == finished
    records = read_records(run / "candidates.jsonl")
    assert records[: len(earlier)] == earlier
    assert len({r["key"] for r in records}) == len(records) == 4
    assert read_json(run / "run.json")["status"] == "finished"

    # The result is that of a run that nobody interrupted (here without processes, in sequence).
    whole = run_experiment(
        experiment_file("whole.yml", nni={"engine": "sequential"}),
        out=str(tmp_path / "whole"),
        report=lambda line: None,
    )
    expected = {r["key"]: plain(r) for r in read_records(whole / "candidates.jsonl")}
    assert {r["key"]: plain(r) for r in records} == expected
    ours, theirs = read_json(run / "final.json"), read_json(whole / "final.json")
    for one, other in zip(ours["networks"], theirs["networks"], strict=True):
        for network in (one, other):
            network["metrics"].pop("seconds")
            network["history"] = [{**h, "seconds": 0} for h in network["history"]]
        assert one == other
    assert sorted(p.name for p in run.glob("*.yaml")) == sorted(
        p.name for p in whole.glob("*.yaml")
    )
    assert (run / "best.yaml").read_text() == (whole / "best.yaml").read_text()

    # NNI credits every trial with the architecture that it trained.
    shown = pairs_in_nni(run)
    by_trial = {r["trial"]: r for r in map(read_json, run.glob("store/*/record.json"))}
    assert set(by_trial) <= set(shown)
    assert len(by_trial) == 7
    for trial, record in by_trial.items():
        parameters = shown[trial]
        phase = parameters["mutation_summary"]["phase"]
        assert phase == record["phase"]
        if phase != "supernet":
            assert parameters["sample"] == record["sample"]

    # No process of the run is left.
    ids = {entry["id"] for entry in read_json(run / "run.json")["nni"]}
    assert len(ids) == 2
    left = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if ids & set(p.info["cmdline"] or [])
    ]
    assert not left


@pytest.mark.timeout(600)
def test_ctrl_c_says_how_to_go_on(experiment_file: Write, tmp_path: Path) -> None:
    file = experiment_file(nni={"engine": "ts", "concurrency": 2})
    run = tmp_path / "run"
    started = Started(file, run, free_port())
    wait_for_records(run, 1, started)
    started.process.send_signal(signal.SIGINT)
    output = started.ended()
    assert started.process.returncode == 130, output
    assert "--resume" in output.splitlines()[-1]
    state = read_json(run / "run.json")
    assert state["status"] == "interrupted"
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if state["nni"][0]["id"] in str(p.info["cmdline"])
    ]


@pytest.mark.timeout(600)
def test_killed_node_manager_is_told(experiment_file: Write, tmp_path: Path) -> None:
    file = experiment_file(nni={"engine": "ts", "concurrency": 2})
    run = tmp_path / "run"
    started = Started(file, run, free_port())
    wait_for_records(run, 1, started)
    number = read_json(run / "run.json")["nni"][0]["id"]
    managers = [
        p
        for p in psutil.process_iter(["cmdline"])
        if number in (p.info["cmdline"] or []) and "main.js" in str(p.info["cmdline"])
    ]
    assert len(managers) == 1
    managers[0].kill()
    output = started.ended(120)
    assert started.process.returncode == 2, output
    assert "error: NNI's manager does not answer any more" in output
    assert read_json(run / "run.json")["status"] == "failed"
