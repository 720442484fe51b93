"""A search of seconds, on eight-by-eight digits."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from nni.tools.nnictl.config_utils import Experiments

from nni_robust.store import read_json

_TRAINING = {
    "epochs": 1,
    "batch_size": 64,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
}

TINY: dict[str, Any] = {
    "name": "tiny",
    "task": {
        "threat": {"eps": 0.1},
        "train_limit": 128,
        "validation_limit": 64,
        "test_limit": 32,
    },
    "space": {"name": "robnet", "init_channels": 2, "cells": 3},
    "strategy": {"name": "robust-one-shot", "candidates": 3, "supernet": _TRAINING},
    "evaluator": {
        "name": "adversarial-training",
        "train": _TRAINING,
        "attacks": ["pgd3"],
        "recalibrate_batches": 1,
    },
    "final": {
        "train": _TRAINING,
        "attacks": ["fgsm"],
        "eps_factors": [0, 1],
        "steps": [1, 3],
        "corruptions": ["fog", "contrast"],
        "examples": 3,
        "rival_draws": 5,
    },
    "nni": {"engine": "sequential"},
}


#: Sections of a search whose trials only look up: they start together and end at once.
LOOKUP: dict[str, Any] = {
    "task": {"dataset": "blank", "threat": {"eps": "8/255"}, "attack": "pgd20"},
    "space": {
        "name": "wide-resnet",
        "depths": [11, 11, 11],
        "widths": [16, 16, 16],
        "depth_values": [4, 5, 7, 9, 11],
        "width_values": [8, 10, 12, 14, 16],
    },
    "strategy": {"name": "random"},
    "evaluator": {"name": "tabular", "table": "synthetic:wrn", "as_trials": True},
    "final": None,
}


@pytest.fixture
def lookup() -> dict[str, Any]:
    """Sections for `experiment_file`; ``nni`` is to be added."""
    return dict(LOOKUP)


@pytest.fixture
def experiment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write the tiny experiment with some sections changed; HOME is a folder of the test."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # NNI looks where its list of experiments is when it is imported; by then it was another home,
    # whose list would grow with every test, and every start reads it.
    monkeypatch.setattr(Experiments.__init__, "__defaults__", (str(home / "nni-experiments"),))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)

    def write(name: str = "tiny.yml", **sections: Any) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**TINY, **sections}))
        return str(path)

    return write


class Nnictl:
    """NNI's command, in the home of the test, and the experiments that it started."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}  # of the experiments that were started

    def __call__(self, *arguments: str) -> str:
        done = self._run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @staticmethod
    def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("nnictl")), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    def create(self, run: Path) -> str:
        """Start what ``nni-robust nni-config`` wrote; NNI's id."""
        for _ in range(5):
            port = free_port()
            command = ("create", "--config", str(run / "nnictl.yml"), "--port", str(port))
            done = self._run(*command)
            # nnictl gives its node manager three seconds to start, which a busy machine does not.
            if done.returncode == 0 or "Create experiment failed" not in done.stdout:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        (experiment,) = re.findall(r'run "nnictl stop (\w+)"', done.stdout)
        self.ports[experiment] = port
        return experiment

    def resume(self, experiment: str, port: int) -> None:
        """What ``nnictl resume`` does; the experiment is stopped at the end of the test."""
        self("resume", experiment, "--port", str(port))
        self.ports[experiment] = port

    def ask(self, experiment: str, what: str) -> Any:
        """What the experiment's manager answers."""
        url = f"http://127.0.0.1:{self.ports[experiment]}/api/v1/nni/{what}"
        reply = requests.get(url, timeout=60)
        reply.raise_for_status()
        return reply.json()

    def status(self, experiment: str) -> str:
        """What nnictl says, of stopped experiments too."""
        listed = self("experiment", "list", "--all")
        line = next(line for line in listed.splitlines() if f"Id: {experiment}" in line)
        return line.partition("Status: ")[2].split()[0]

    def wait(self, experiment: str) -> None:
        """Wait for the end; a tuner that died is told with its log."""

        def done() -> bool:
            now = self.ask(experiment, "check-status")["status"]
            assert now != "ERROR", self._log(experiment)
            return bool(now == "DONE")

        wait_until(done)

    @staticmethod
    def _log(experiment: str) -> str:
        logs = Path.cwd().glob(f"**/{experiment}/log/dispatcher.log")
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in logs)

    def trials(self, experiment: str) -> list[dict[str, Any]]:
        """What ``nnictl trial ls`` prints."""
        listed = self("trial", "ls", experiment)
        trials: list[dict[str, Any]] = json.loads(listed[listed.index("[") :])
        return sorted(trials, key=lambda trial: trial["sequenceId"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 480) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)


@pytest.fixture
def nnictl(
    experiment_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Nnictl]:
    """NNI's command; what it registers and starts is the test's own and ends with it."""
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "nni-config"))
    command = Nnictl()
    yield command
    for experiment in command.ports:
        command("stop", experiment)


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., None]:
    return wait_until


@pytest.fixture(name="free_port")
def _free_port() -> Callable[[], int]:
    return free_port


@pytest.fixture
def check_pairs() -> Callable[[Path], int]:
    """Check that NNI credits every trial of a run with what it computed; their number."""

    def check(run: Path) -> int:
        records = {r["trial"]: r for r in map(read_json, run.glob("store/*/record.json"))}
        checked = 0
        for database in run.glob("nni/*/db/nni.sqlite"):
            if database.parents[1].is_symlink():  # _latest
                continue
            with contextlib.closing(sqlite3.connect(database)) as connection:
                shown = {
                    trial: json.loads(data)
                    for trial, data in connection.execute(
                        "select trialJobId, data from TrialJobEvent where data <> ''"
                    )
                }
                reported = connection.execute(
                    "select trialJobId, parameterId from MetricData where type = 'FINAL'"
                ).fetchall()
            for trial, number in reported:
                parameters, record = shown[trial]["parameters"], records[trial]
                assert shown[trial]["parameter_id"] == int(number), "swapped"
                assert record["key"] == parameters.get("job", parameters.get("stored_key"))
                if "sample" in parameters and record["sample"]:
                    assert record["sample"] == parameters["sample"]
                checked += 1
        return checked

    return check
