"""A search of seconds, on eight-by-eight digits."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(name: str = "tiny.yml", **sections: Any) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**TINY, **sections}))
        return str(path)

    return write


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
