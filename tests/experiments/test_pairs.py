"""NNI 3.0 gives parameters to whichever trial asks first (issue 5693); ours get their own.

Thirty searches with four trials at a time: twenty here, five killed and resumed; the five whose
trials run on another machine are in test_remote.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nni_robust.experiments import run_experiment
from nni_robust.store import read_records

Write = Callable[..., str]
CheckPairs = Callable[[Path], int]
Search = Callable[[int], str]

TRIALS = 8


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def search(experiment_file: Write, lookup: dict[str, Any]) -> Callable[[int], str]:
    """The file of a search with a seed."""

    def write(seed: int) -> str:
        nni = {"concurrency": 4, "trials": TRIALS, "port": free_port()}
        return experiment_file(**lookup, seed=seed, nni=nni)

    return write


def run(file: str, out: Path) -> Path:
    return run_experiment(file, out=str(out), report=lambda line: None)


def test_four_trials_at_a_time_swap_no_pair(
    search: Search, tmp_path: Path, check_pairs: CheckPairs
) -> None:
    assert check_pairs(run(search(0), tmp_path / "run")) == TRIALS


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 21))
def test_twenty_searches_swap_no_pair(
    search: Search, tmp_path: Path, check_pairs: CheckPairs, seed: int
) -> None:
    assert check_pairs(run(search(seed), tmp_path / "run")) == TRIALS


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(21, 26))
def test_five_resumed_searches_swap_no_pair(
    search: Search, tmp_path: Path, check_pairs: CheckPairs, seed: int
) -> None:
    file, out = search(seed), tmp_path / "run"
    command = [sys.executable, "-m", "nni_robust", "run", file, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while len(read_records(out / "candidates.jsonl")) < 2:
            assert process.poll() is None
            assert time.monotonic() < end, "the run did not get on"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    subprocess.run([*command, "--resume"], check=True, capture_output=True, timeout=400)
    assert len(read_records(out / "candidates.jsonl")) == TRIALS
    assert check_pairs(out) >= TRIALS
