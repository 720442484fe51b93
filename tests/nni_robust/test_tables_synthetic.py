"""The table by formula: costs are exact, its optimum is the optimum, its scale is NARes'."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import numpy as np
import pytest
import torch

from nni_robust.errors import UserError
from nni_robust.search_spaces import WideResNetSpace
from nni_robust.tables import SyntheticTable, open_table
from nni_robust.task import Task
from nni_robust.threat import ThreatModel

TASK = Task(attack="pgd20")
SMALL = {"depths": [4, 7, 11], "widths": [8, 12]}


@pytest.fixture(scope="module")
def scores() -> np.ndarray[Any, Any]:
    table = SyntheticTable()
    return np.array([table.row(sample, TASK)["pgd20@8/255"] for sample in table.samples()])


def test_costs_are_those_of_the_networks() -> None:
    """The closed form of the search space is another implementation, checked against networks."""
    with torch.device("meta"):
        space = WideResNetSpace(10, depths=[11] * 3, widths=[16] * 3)
    table = SyntheticTable()
    for sample in itertools.islice(table.samples(), 0, None, 1111):
        row, cost = table.row(sample, TASK), space.cost(sample)
        assert (row["params"], row["macs"]) == (cost.params, cost.macs)


@pytest.mark.parametrize("attack", ["clean", "fgsm", "pgd20", "autoattack"])
def test_the_optimum_is_the_best_of_all(attack: str) -> None:
    table, task = SyntheticTable(noise=0, **SMALL), Task(attack=attack)
    best, value = table.optimum(task)
    rows = [(table.row(sample, task), sample) for sample in table.samples()]
    assert len(rows) == len(table) == 216
    top = max(rows, key=lambda found: found[0][table.deciding(task)])
    assert top[1] == best
    assert top[0][table.deciding(task)] == pytest.approx(value, abs=1e-6)
    assert table.truth(best, task) == value


def test_its_scale_is_that_of_nares(scores: np.ndarray[Any, Any]) -> None:
    """NARes: optimum 38.80; best of 500 random architectures 38.18 ± 0.22 (400 runs)."""
    assert scores.max() == pytest.approx(0.3880, abs=0.001)
    rng = np.random.default_rng(0)
    best = [scores[rng.choice(len(scores), 500, replace=False)].max() for _ in range(200)]
    assert statistics.fmean(best) == pytest.approx(0.3818, abs=0.001)
    assert statistics.stdev(best) == pytest.approx(0.0022, abs=0.0005)


def test_no_choice_decides_alone(scores: np.ndarray[Any, Any]) -> None:
    """A sum of one term per choice explains part of the truth only, and a climber gets stuck."""
    table = SyntheticTable()
    truth = np.array([table.truth(sample, TASK) for sample in table.samples()]).reshape((5,) * 6)
    additive = sum(
        truth.mean(axis=tuple(a for a in range(6) if a != axis), keepdims=True) for axis in range(6)
    )
    rest = truth - (additive - 5 * truth.mean())
    assert 0.2 < rest.var() / truth.var() < 0.8
    peaks = np.ones_like(truth, dtype=bool)  # no change of one choice improves it
    for axis in range(6):
        peaks &= truth >= truth.max(axis=axis, keepdims=True)
    assert peaks.sum() >= 5


def test_attacks_want_other_networks_than_clean_pictures() -> None:
    """The finding that the formula contains: under attack the last stage should be small."""
    table = SyntheticTable(noise=0)
    best = {a: table.optimum(Task(attack=a))[0] for a in ("clean", "pgd20")}
    assert best["clean"] != best["pgd20"]
    samples = list(table.samples())
    size = np.array([s["stage3/depth"] * s["stage3/width"] for s in samples], dtype=float)
    slopes = {}
    for attack in ("clean", "fgsm", "pgd20", "autoattack"):
        truth = np.array([table.truth(s, Task(attack=attack)) for s in samples])
        slopes[attack] = np.corrcoef(size, truth)[0, 1]
    assert slopes["clean"] > slopes["fgsm"] > slopes["pgd20"] > slopes["autoattack"]
    assert slopes["clean"] > 0 > slopes["autoattack"]


def test_stronger_attacks_leave_less_accuracy() -> None:
    table = SyntheticTable(noise=0)
    sample = table.optimum(TASK)[0]
    at = [
        table.row(sample, Task(attack="pgd20", threat=ThreatModel(eps=k / 255)))[f"pgd20@{k}/255"]
        for k in (2, 4, 8, 12)
    ]
    assert at == sorted(at, reverse=True)


def test_noise_is_seeded_and_differs_between_splits(scores: np.ndarray[Any, Any]) -> None:
    table, same, other = SyntheticTable(), SyntheticTable(seed=2), SyntheticTable(seed=1)
    sample = next(table.samples())
    assert table.row(sample, TASK) == same.row(sample, TASK) != other.row(sample, TASK)
    assert table.fingerprint() == same.fingerprint() != other.fingerprint()
    row = table.row(sample, TASK)
    assert row["pgd20@8/255"] != row["test pgd20@8/255"]
    tests = np.array([table.row(s, TASK)["test pgd20@8/255"] for s in table.samples()])
    truth = np.array([table.truth(s, TASK) for s in table.samples()])
    residuals = np.corrcoef(scores - truth, tests - truth)[0, 1]
    # Common part 0.25, own parts 0.3: the correlation of the two sums is 0.25² / (0.25² + 0.3²).
    assert residuals == pytest.approx(0.41, abs=0.03)


def test_nothing_off_the_grid() -> None:
    table = open_table("synthetic:wrn")
    sample = next(table.samples())
    with pytest.raises(UserError, match=r"stage1/depth=6 \(its values: 4, 5, 7, 9, 11\)"):
        table.row({**sample, "stage1/depth": 6}, TASK)
    with pytest.raises(UserError, match="without a value for 'stage2/width'"):
        table.row({k: v for k, v in sample.items() if k != "stage2/width"}, TASK)
    with pytest.raises(UserError, match="stage1/block='robust'"):
        table.row({**sample, "stage1/block": "robust"}, TASK)
    assert table.row({**sample, "stage1/block": "basic"}, TASK) == table.row(sample, TASK)
