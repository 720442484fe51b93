"""NNI's TPE behind our repairs: its direction, choices of inputs, what it cannot search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.hub.pytorch import DARTS, NasBench101
from nni.nas.nn.pytorch import InputChoice, ModelSpace
from nni.nas.space import SimplifiedModelSpace

from nni_robust.errors import UserError
from nni_robust.nni_adapter.tpe import TPE
from nni_robust.trial import StoredEvaluator


class Zeros(StoredEvaluator):
    """The share of inputs that are the first one; no network is built."""

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        share = np.mean([value == [0] for value in model.sample.values()])
        return {"metrics": {"default": float(share)}}


class TwoInputs(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = InputChoice(3, 2, label="inputs")


def search(space: Any, models: int = 40, **settings: Any) -> list[float]:
    with torch.device("meta"):
        made = SimplifiedModelSpace.from_model(space(), Zeros())
    engine = SequentialExecutionEngine(models)
    TPE(seed=0, **settings)(made, engine)
    return [model.metric for model in engine._history]


def test_it_does_not_sleep_while_workers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def asleep(seconds: float) -> None:
        raise AssertionError(f"asleep for {seconds} s")

    monkeypatch.setattr("time.sleep", asleep)
    assert len(search(darts, 3)) == 3


def darts() -> Any:
    return DARTS(width=4, num_cells=3, dataset="cifar")


def test_it_climbs_unless_told_otherwise() -> None:
    up, down = search(darts), search(darts, optimize_mode="minimize")
    assert np.mean(up[-15:]) > 2 * np.mean(down[-15:])


@pytest.mark.parametrize(
    ("space", "says"),
    [(TwoInputs, "the choice 'inputs'"), (NasBench101, "the choice 'cell/input1'")],
)
def test_what_it_cannot_search(space: Any, says: str) -> None:
    with pytest.raises(UserError, match=rf"tpe cannot search this space: {says} .* one value"):
        search(space, 1)


def test_direction() -> None:
    with pytest.raises(UserError, match=r"optimize_mode: 'up' is not allowed; allowed: maximize"):
        TPE(optimize_mode="up")
