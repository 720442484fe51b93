"""A trial of an nnictl experiment is killed: it is started again, and the experiment is done."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nni_robust.cli import main
from nni_robust.store import read_json, read_records

Write = Callable[..., str]


def nnictl(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("nnictl")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def trials(run: Path) -> list[psutil.Process]:
    """Processes that run a job of this run, with whatever started them."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        command = process.info["cmdline"] or []
        if str(run / "store") in command and "python" in str(process.info["name"]):
            found.append(process)
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_trial_under_nnictl(experiment_file: Write, tmp_path: Path) -> None:
    """The last trial of all is killed, when the manager has no other to ask for."""
    run = tmp_path / "run"
    file = experiment_file(final=None, nni={"concurrency": 1, "fork_trials": False})
    changes = ["--set", "strategy.candidates=1"]
    assert main(["nni-config", file, "--out", str(run), *changes]) == 0
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    nnictl("create", "--config", str(run / "nnictl.yml"), "--port", port)
    experiment = next(p.name for p in (run / "nni").iterdir() if not p.is_symlink())
    try:
        log = run / "candidates.jsonl"
        wait_until(lambda: len(read_records(log)) == 1)  # the supernet
        for process in wait_until(lambda: trials(run)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: len(read_records(log)) == 2)
        assert [r["status"] for r in read_records(log)] == ["ok", "ok"]
        wait_until(lambda: read_json(run / "run.json")["status"] == "finished")

        def done() -> bool:
            lines = nnictl("experiment", "list", "--all").splitlines()
            return any(f"Id: {experiment}" in line and "Status: DONE" in line for line in lines)

        wait_until(done)
    finally:
        nnictl("stop", experiment)
