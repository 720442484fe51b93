"""Kills at random moments under NNI's training service: the search, its manager, its trials."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
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


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def processes(home: Path, part: str) -> list[psutil.Process]:
    """Those of a search with this HOME that have such a word in their command."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            words = process.info["cmdline"] or []
            if any(part in word for word in words) and process.environ()["HOME"] == str(home):
                found.append(process)
    return found


def target(home: Path, search: psutil.Process, what: str) -> psutil.Process | None:
    if what == "search":
        return search
    if what == "manager":
        return next(iter(processes(home, "nni_node")), None)
    for server in processes(home, "warm.server"):
        with contextlib.suppress(psutil.Error):
            for fork in server.children():
                return fork
    return None


def plain(record: dict[str, Any]) -> str:
    metrics = {k: v for k, v in record["metrics"].items() if k != "seconds"}
    kept = {k: record[k] for k in ("phase", "index", "key", "sample", "status")}
    return json.dumps({**kept, "metrics": metrics}, sort_keys=True)


def computed(run: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in run.glob("store/*/record.json")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(
    experiment_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nni = {"engine": "ts", "concurrency": 2, "trial_threads": 1}
    base, changes = experiment_file(nni=nni, final=None), ["strategy.candidates=30"]
    run, home, rng = tmp_path / "run", tmp_path / "home", random.Random(1)
    command = [sys.executable, "-m", "nni_robust", "run", base, "--out", str(run)]
    for change in changes:
        command += ["--set", change]
    kills: list[tuple[str, int]] = []
    plan = ["trial", "search", "manager", "trial", "search", "manager", "trial", "trial"]
    finished: dict[str, int] = {}
    with open(tmp_path / "log.txt", "w") as log:
        while True:
            resume = ["--resume"] if (run / "config.yaml").is_file() else []
            search = psutil.Popen(
                [*command, "--port", free_port(), *resume],
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(home)},
            )
            while search.poll() is None and plan:
                # From the moment that NNI runs.
                seen = (
                    len(read_json(run / "run.json")["nni"]) if (run / "run.json").is_file() else 0
                )
                if seen <= len([what for what, _ in kills if what != "trial"]):
                    time.sleep(0.2)
                    continue
                time.sleep(rng.uniform(0, 4))
                victim = None
                while victim is None and search.poll() is None:
                    victim = target(home, search, plan[0])
                if victim is None:
                    break
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    kills.append((plan.pop(0), len(computed(run))))
                    if kills[-1][0] != "trial":
                        break
            code = search.wait()
            now = computed(run)
            assert {key: now.get(key) for key in finished} == finished
            finished = now
            if code == 0:
                break
            assert kills, Path(log.name).read_text()
            assert code == {"search": -9, "manager": 2}[kills[-1][0]], Path(log.name).read_text()
    with capsys.disabled():
        print(f"\nkilled, and trials finished by then: {kills}")
    assert len(kills) >= 5
    assert {what for what, _ in kills} == {"trial", "search", "manager"}
    whole = run_experiment(
        experiment_file("whole.yml", nni={"engine": "sequential"}, final=None),
        out=str(tmp_path / "whole"),
        overrides=changes,
        html=False,
        report=lambda line: None,
    )
    records = read_records(run / "candidates.jsonl")
    expected = sorted(map(plain, read_records(whole / "candidates.jsonl")))
    assert sorted(plain(r) for r in records if r["status"] == "ok") == expected
    # A trial that was killed three times would be a failed one; here none was.
    assert all(r["status"] == "ok" for r in records)
    assert not processes(home, "nni_node")
