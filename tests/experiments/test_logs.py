"""The curves of trials in TensorBoard, opened as the button of NNI's web UI opens them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from nni_robust.experiments import run_experiment
from nni_robust.store import read_json, read_records
from nni_robust.trial import LOG


@pytest.mark.slow
def test_nni_shows_the_curves_of_its_trials(
    experiment_file: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_port: Callable[[], int],
    wait_until: Callable[..., None],
) -> None:
    # NNI starts the program `tensorboard` from the PATH.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.delenv(LOG, raising=False)
    run = run_experiment(
        experiment_file(final=None, nni={"log": ["tensorboard"]}),
        out=str(tmp_path / "run"),
        port=free_port(),
        report=lambda line: None,
    )
    records = read_records(run / "candidates.jsonl")
    trials = [record["trial"] for record in records]
    assert len(trials) == 4  # a supernet, three candidates
    port = free_port()
    with open(tmp_path / "view.txt", "w") as log:
        view = subprocess.Popen(
            [sys.executable, "-m", "nni_robust", "view", str(run), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    rest = f"http://127.0.0.1:{port}/api/v1/nni"
    try:
        wait_until(lambda: view.poll() is not None or "http" in (tmp_path / "view.txt").read_text())
        assert view.poll() is None, (tmp_path / "view.txt").read_text()
        task = requests.post(
            f"{rest}/tensorboard", json={"trials": ",".join(trials)}, timeout=60
        ).json()
        board = f"http://127.0.0.1:{task['port']}/data/plugin/scalars"
        shown: dict[str, dict[str, Any]] = {}

        def ready() -> bool:
            try:
                shown.update(requests.get(f"{board}/tags", timeout=60).json())
            except (requests.ConnectionError, ValueError):
                return False
            return len(shown) == len(trials)

        wait_until(ready)
        for record in records:
            (name,) = [name for name in shown if record["trial"] in name]
            points = requests.get(
                f"{board}/scalars", params={"run": name, "tag": "loss"}, timeout=60
            ).json()
            kept = read_json(run / "store" / record["key"] / "record.json")
            wanted = [(h["epoch"], pytest.approx(h["loss"], rel=1e-5)) for h in kept["history"]]
            assert [(step, value) for _, step, value in points] == wanted
    finally:
        requests.delete(f"{rest}/tensorboard-tasks", timeout=60)
        view.send_signal(signal.SIGINT)
        assert view.wait(timeout=120) == 0
