"""Every strategy proposes the same architectures in the same order through both doors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nni_robust.cli import main
from nni_robust.experiments import run_experiment
from nni_robust.store import read_records

_TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 32,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
}
_TASK: dict[str, Any] = {"threat": {"eps": 0.1}, "train_limit": 96, "validation_limit": 32}
_TRAINED = {"name": "adversarial-training", "train": _TRAIN, "attacks": ["fgsm"]}
_ROBNET = {"name": "robnet", "init_channels": 2, "cells": 3}
_FORMULA: dict[str, Any] = {
    "task": {"dataset": "blank", "attack": "pgd20"},
    "space": {
        "name": "wide-resnet",
        "depths": [11, 11, 11],
        "widths": [16, 16, 16],
        "depth_values": [4, 5, 7, 9, 11],
        "width_values": [8, 10, 12, 14, 16],
    },
    "evaluator": {"name": "tabular", "table": "synthetic:wrn"},
    "nni": {"engine": "sequential", "trials": 5},
}

#: Sections of the experiment, and how many trials there are of each phase.
STRATEGIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "robust-one-shot, screened": (
        {
            "task": _TASK,
            "space": _ROBNET,
            "strategy": {
                "name": "robust-one-shot",
                "candidates": 2,
                "supernet": _TRAIN,
                "screen": {"draws": 4, "keep": 0.5, "pictures": 8},
            },
            "evaluator": _TRAINED,
        },
        {"supernet": 1, "screening": 1, "candidate": 2},
    ),
    "rl-compressor": (
        {**_FORMULA, "strategy": {"name": "rl-compressor", "updates": 2, "rollouts": 2}},
        {"candidate": 4},
    ),
    "cross-layer-distillation": (
        {
            "task": {
                **_TASK,
                "teacher": {"architecture": "wrn-16-1", "train": {**_TRAIN, "loss": "clean"}},
            },
            "space": {
                "name": "inverted-residual",
                "preset": None,
                "stages": [
                    {"blocks": 1, "widths": [8, 4]},
                    {"blocks": 1, "widths": [8, 6, 4], "stride": 2},
                ],
                "stem_channels": 4,
                "stem_stride": 1,
            },
            "strategy": {
                "name": "cross-layer-distillation",
                "search": {
                    "weights": {"epochs": 1, "batch_size": 24, "lr": 0.05},
                    "maps": {"size": 4},
                },
            },
            "evaluator": _TRAINED,
        },
        {"teacher": 1, "search": 1, "candidate": 1},
    ),
    "wide-spectrum": (
        {
            "task": _TASK,
            "space": _ROBNET,
            "strategy": {
                "name": "wide-spectrum",
                "candidates": 2,
                "epochs": 2,
                "warmup": {"archs": 2},
                "objective": {"strengths": [0.05, 0.1, 0.15], "weights": [1, 2, 3]},
                "signal": "warm-start",
                "measure": {"steps": 1, "pictures": 24, "recalibrate_batches": 1},
                "finalists": 2,
                "supernet": _TRAIN,
            },
            "evaluator": _TRAINED,
        },
        {"search": 1, "candidate": 2},
    ),
    "random": ({**_FORMULA, "strategy": "random"}, {"candidate": 5}),
    "tpe": ({**_FORMULA, "strategy": "tpe"}, {"candidate": 5}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_sequence_through_both_doors(
    name: str, experiment_file: Callable[..., str], nnictl: Any, tmp_path: Path
) -> None:
    sections, phases = STRATEGIES[name]
    file = experiment_file(**{"nni": {}, **sections, "final": None, "seed": 3})
    here = run_experiment(
        file, out="here", overrides=["nni.engine=sequential"], report=lambda line: None
    )
    there = tmp_path / "there"
    assert main(["nni-config", file, "--out", str(there)]) == 0
    nnictl.wait(nnictl.create(there))
    sequences = [
        [(r["phase"], r["sample"], r["status"]) for r in read_records(run / "candidates.jsonl")]
        for run in (here, there)
    ]
    assert sequences[0] == sequences[1]
    found = [phase for phase, _, status in sequences[0] if status == "ok"]
    assert {phase: found.count(phase) for phase in found} == phases
