"""A run under NNI's training service, killed and resumed: nothing lost, nothing twice.

The whole thing with real processes: node manager, trials, web server. One run serves several
checks, because every trial process costs seconds of imports.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import psutil
import pytest
import torch

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


def without_seconds(path: Path) -> Any:
    """A JSON file without what depends on speed."""

    def scrubbed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: scrubbed(v) for k, v in value.items() if k != "seconds"}
        return [scrubbed(v) for v in value] if isinstance(value, list) else value

    return scrubbed(read_json(path))


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
    assert without_seconds(run / "final.json") == without_seconds(whole / "final.json")
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


#: A module that Python imports at its start: it notes whatever a pickle imports.
_AUDIT = """
import os, sys, traceback
def hook(event, args):
    if event == "pickle.find_class":
        with open(os.environ["PICKLES"], "a") as f:
            f.write(f"{args} {sys.argv} {traceback.format_stack(limit=6)}\\n")
sys.addaudithook(hook)
with open(os.environ["PICKLES"] + ".watched", "a") as f:
    f.write("x")
"""


def warm_children(home: Path) -> list[psutil.Process]:
    """The trials that run, forked from the warm process of a search whose HOME this is."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if "nni_robust.nni_adapter.warm.server" in (
                process.info["cmdline"] or []
            ) and process.environ().get("HOME") == str(home):
                found += process.children()
    return found


def pickles_in(folder: Path) -> list[str]:
    """Files that are, or hold, a pickle: by their first bytes, NNI's own markers, or base64."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix == ".safetensors":
            continue
        data = path.read_bytes()
        markers = [b"bytes:gA", b"__nni_obj__", b"gASV", b"gAWV"]
        if path.suffix == ".html":
            markers = markers[:2]  # pictures in base64 may hold any four letters
        if data[:1] == b"\x80" and data[1:2] <= b"\x05":
            found.append(f"{path}: begins as a pickle")
        if zipfile.is_zipfile(path):
            found.append(f"{path}: a zip file, as torch.save writes")
        found += [f"{path}: {marker!r}" for marker in markers if marker in data]
    return found


def test_pickles_are_found(tmp_path: Path) -> None:
    """What the next test looks for can be found."""

    def local() -> None: ...

    (tmp_path / "a").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "b.json").write_text(nni.dump({"f": local}))
    torch.save({"w": torch.zeros(1)}, tmp_path / "c.pt")
    with sqlite3.connect(tmp_path / "d.sqlite") as connection:
        connection.execute("create table t (x text)")
        connection.execute("insert into t values (?)", [nni.dump({"f": local})])
    assert {Path(line.partition(":")[0]).name for line in pickles_in(tmp_path)} == {
        "a", "b.json", "c.pt", "d.sqlite"
    }  # fmt: skip


@pytest.mark.timeout(900)
def test_killed_trial_then_killed_manager_then_resumed(
    experiment_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["strategy.candidates=1", "final.rivals=[]"]
    options = [word for change in changes for word in ("--set", change)]
    # As many threads as here: sums are added in another order otherwise.
    file = experiment_file(nni={"engine": "ts", "concurrency": 1, "trial_threads": 1})
    run, port = tmp_path / "run", free_port()
    started = Started(file, run, port, *options)
    wait_for_records(run, 1, started)  # the supernet
    end = time.monotonic() + 120
    while not (trials := warm_children(tmp_path / "home")):
        assert time.monotonic() < end, "no candidate was started"
        time.sleep(0.01)
    trials[0].kill()
    wait_for_records(run, 2, started)  # the final training is left
    assert [r["status"] for r in read_records(run / "candidates.jsonl")] == ["ok", "ok"]

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
    assert "died without a reason" in output
    assert output.splitlines()[-1].startswith("error: NNI's manager does not answer any more")
    assert read_json(run / "run.json")["status"] == "failed"
    before, finished = read_records(run / "candidates.jsonl"), computed(run)
    assert not pickles_in(run)

    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "sitecustomize.py").write_text(_AUDIT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "audit"))
    monkeypatch.setenv("PICKLES", str(tmp_path / "pickles"))
    resumed = Started(file, run, port, "--resume", *options)
    output = resumed.ended()
    assert resumed.process.returncode == 0, output
    records, after = read_records(run / "candidates.jsonl"), computed(run)
    assert records[: len(before)] == before
    assert {key: after[key] for key in finished} == finished
    whole = run_experiment(
        experiment_file("whole.yml", nni={"engine": "sequential"}),
        out=str(tmp_path / "whole"),
        overrides=changes,
        html=False,
        report=lambda line: None,
    )
    expected = [plain(r) for r in read_records(whole / "candidates.jsonl")]
    assert sorted(map(plain, records), key=str) == sorted(expected, key=str)
    assert without_seconds(run / "final.json") == without_seconds(whole / "final.json")
    assert not pickles_in(run)
    assert len((tmp_path / "pickles.watched").read_text()) > 1  # the trials were watched as well
    assert not (tmp_path / "pickles").exists(), (tmp_path / "pickles").read_text()
