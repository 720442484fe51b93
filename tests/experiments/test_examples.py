"""The example project, run as a stranger would run it: from another folder, in a new process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nni.nas.hub.pytorch import NasBench201

from nni_robust.cost import measure_cost
from nni_robust.search_spaces import DartsSpace, RobNetSpace
from nni_robust.store import read_json

PROJECT = Path(__file__).resolve().parents[2] / "experiments" / "examples" / "their_project"
HUB: dict[str, Any] = {"stem_out_channels": 4, "num_modules_per_stack": 1, "num_labels": 10}


def start(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(PROJECT / script), *arguments],
        cwd=elsewhere,
        env={**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )


def result(folder: Path, script: str, *arguments: str) -> Any:
    answer = start(folder, script, *arguments)
    assert answer.returncode == 0, answer.stderr
    assert not list((folder / "elsewhere").iterdir())  # it leaves nothing where it is started
    return json.loads(answer.stdout.splitlines()[-1])


def macs(sample: Any) -> int:
    """Counted on a network that is built here."""
    with torch.device("meta"):
        return measure_cost(NasBench201(**HUB).freeze(sample), (3, 8, 8)).macs


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def records(store: Path) -> list[Any]:
    return [read_json(path) for path in store.glob("*/record.json")]


def check_compressed(found: Any, space: str, store: Path) -> None:
    phases = sorted(record["phase"] for record in records(store))
    assert phases == ["candidate"] * found["candidates"] + ["reference"]
    candidates = [r for r in records(store) if r["phase"] == "candidate"]
    assert 1 <= len(candidates) <= 4
    limit = {"own": 120e3, "hub": 150e3}[space] * 1.1  # a budget's tolerance
    assert all(r["metrics"]["macs"] <= limit for r in candidates)
    assert found["score"] == max(r["metrics"]["default"] for r in candidates)
    (winner,) = [r for r in candidates if r["sample"] == found["winner"]]
    assert winner["metrics"]["macs"] == found["macs"]
    if space == "hub":
        assert found["macs"] == macs(found["winner"])
        assert found["best"] in [r["sample"] for r in candidates]


@pytest.mark.parametrize("space", ["own", "hub"])
def test_compress(space: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = result(tmp_path, "compress.py", "--space", space, "--store", str(store))
    check_compressed(found, space, store)


@pytest.mark.parametrize("space", ["own", pytest.param("hub", marks=pytest.mark.slow)])
def test_wide_spectrum(space: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = result(tmp_path, "wide_spectrum.py", "--space", space, "--store", str(store))
    assert sorted(record["phase"] for record in records(store)) == ["candidate", "search"]
    (candidate,) = [r for r in records(store) if r["phase"] == "candidate"]
    assert candidate["sample"] == found["best"]  # and not the search, whose score is higher
    metrics = candidate["metrics"]
    average = (metrics["pgd3@0.05"] + 2 * metrics["pgd3@0.1"] + 3 * metrics["pgd3@0.15"]) / 6
    assert found["score"] == metrics["default"] == pytest.approx(average)
    assert found["objective"] == pytest.approx(found["judged"], rel=1e-5)
    assert found["objective"] == sorted(found["objective"])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["compress.py", "wide_spectrum.py"])
@pytest.mark.parametrize("space", ["own", "hub"])
def test_trials_in_processes(script: str, space: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = result(
        tmp_path, script, "--space", space, "--store", str(store),
        "--engine", "ts", "--port", str(free_port()),
    )  # fmt: skip
    assert all(record["trial"] for record in records(store))  # NNI's name of the trial
    assert found["best"] in [r["sample"] for r in records(store) if r["phase"] == "candidate"]
    if script == "compress.py":
        check_compressed(found, space, store)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("space", "strategy"),
    [
        pytest.param("wide-resnet", "random", marks=_SLOW),
        pytest.param("robnet", "evolution", marks=_SLOW),
        ("darts", "tpe"),
        pytest.param("wide-resnet", "grid", marks=_SLOW),
    ],
)
def test_nnis_strategies_on_our_spaces(space: str, strategy: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = result(
        tmp_path, "nni_strategies.py", "--space", space, "--strategy", strategy,
        "--store", str(store),
    )  # fmt: skip
    assert found["candidates"] == len(records(store)) == 3
    best = max(records(store), key=lambda record: record["metrics"]["default"])
    assert found["score"] == best["metrics"]["default"] == best["metrics"]["fgsm@0.1"]


OURS: dict[str, Any] = {
    "robnet": lambda: RobNetSpace(10, init_channels=2, cells=3),
    "darts": lambda: DartsSpace(10, width=2, cells=3),
}


@pytest.mark.parametrize(
    ("space", "strategy"),
    [
        ("robnet", "random"),
        pytest.param("robnet", "gumbel-darts", marks=_SLOW),
        pytest.param("robnet", "darts", marks=_SLOW),
        pytest.param("darts", "random", marks=_SLOW),
        pytest.param("darts", "gumbel-darts", marks=_SLOW),
        pytest.param("darts", "darts", marks=_SLOW),
    ],
)
def test_nnis_one_shot_strategies(space: str, strategy: str, tmp_path: Path) -> None:
    found = result(tmp_path, "one_shot.py", "--space", space, "--strategy", strategy)
    with torch.device("meta"):
        network = OURS[space]().freeze(found["best"])  # refuses what is not in the space
        assert network.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("space", "strategy"),
    [
        ("wide-resnet", "random"),
        pytest.param("inverted-residual", "gumbel-darts", marks=_SLOW),
        pytest.param("inverted-residual", "darts", marks=_SLOW),
    ],
)
def test_one_shot_refusals_are_a_sentence(space: str, strategy: str, tmp_path: Path) -> None:
    answer = start(tmp_path, "one_shot.py", "--space", space, "--strategy", strategy)
    assert answer.returncode != 0
    assert "nni_robust.errors.UserError: strategy" in answer.stderr
    assert "is not allowed with" in answer.stderr
