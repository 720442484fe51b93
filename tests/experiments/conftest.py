"""A search of seconds, on eight-by-eight digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
