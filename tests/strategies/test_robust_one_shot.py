"""The one-shot search on RobNet and on a space of NNI's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d
from nni.nas.space import SimplifiedModelSpace
from torch import nn

from nni_robust.errors import UserError
from nni_robust.evaluators import AdversarialTraining
from nni_robust.search_spaces import RobNetSpace
from nni_robust.store import Store
from nni_robust.strategies import RobustOneShot
from nni_robust.supernet import build_supernet, inherit
from nni_robust.training import Recipe
from nni_robust.training.weights import load_weights

TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 48,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
}
TASK: dict[str, Any] = {"threat": {"eps": 0.1}, "train_limit": 96, "validation_limit": 32}


def evaluator(folder: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "task": TASK,
        "train": TRAIN,
        "attacks": ["fgsm"],
        "store": str(folder),
        "recalibrate_batches": 1,
    }
    return AdversarialTraining(**{**arguments, **changes})


def robnet() -> Any:
    return RobNetSpace(num_classes=10, init_channels=2, cells=3)


def search(space: Any, evaluator: Any, strategy: RobustOneShot) -> list[Any]:
    engine = SequentialExecutionEngine()
    strategy(SimplifiedModelSpace.from_model(space, evaluator), engine)
    return list(engine.list_models())


class OwnSpace(ModelSpace):
    """A space that a user might define, of NNI's parts."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.stem = MutableConv2d(3, width, 3, padding=1)
        self.op = LayerChoice(
            {"conv": MutableConv2d(width, width, 3, padding=1), "skip": nn.Identity()}, label="op"
        )
        self.head = MutableConv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.op(torch.relu(self.stem(x))))).mean((2, 3))


def test_supernet_then_candidates_that_inherit(tmp_path: Path) -> None:
    strategy = RobustOneShot(candidates=2, supernet={**TRAIN, "epochs": 2}, seed=3)
    only_attack = evaluator(tmp_path, train=None, recalibrate_batches=0)
    models = search(robnet(), only_attack, strategy)
    assert [m.evaluator.phase for m in models] == ["supernet", "candidate", "candidate"]
    assert len(strategy.scores) == 2
    key = models[0].evaluator.key(models[0])
    record = Store(tmp_path).result(key)
    assert record is not None
    assert len(record["history"]) == 2
    # A candidate's network, taken out of the stored supernet by hand, has the reported accuracy.
    supernet = build_supernet(robnet())
    load_weights(supernet, Store(tmp_path).folder(key) / "weights.safetensors")
    for model in models[1:]:
        metrics = evaluator(tmp_path, train=None, store=None).evaluate(
            inherit(supernet, model.sample)
        )["metrics"]
        assert model.metrics.final == metrics["default"]


def test_works_on_a_space_of_the_user(tmp_path: Path) -> None:
    strategy = RobustOneShot(candidates=4, supernet=TRAIN)
    models = search(OwnSpace(), evaluator(tmp_path), strategy)
    assert len({tuple(sorted(m.sample.items())) for m in models[1:]}) == 4
    assert len(strategy.scores) == 4


def test_prior_of_the_space_or_uniform(tmp_path: Path) -> None:
    """RobNet keeps each operation with probability 0.7; uniform keeps half."""

    def share(uniform: bool) -> float:
        strategy = RobustOneShot(candidates=150, uniform=uniform)
        strategy.initialize(
            SimplifiedModelSpace.from_model(robnet(), evaluator(tmp_path)),
            SequentialExecutionEngine(),
        )
        values = [v for s in strategy.samples for v in s.values()]
        return sum(("conv" in v) + ("skip" in v) for v in values) / (2 * len(values))

    error = 4 * (0.25 / (150 * 28)) ** 0.5
    assert abs(share(False) - 0.7) < error
    assert abs(share(True) - 0.5) < error


@pytest.mark.parametrize(
    ("arguments", "changes", "says"),
    [
        ({"candidates": 0}, {}, "candidates: 0"),
        ({}, {"store": None}, "store"),
        ({}, {"train": None}, "strategy.supernet is missing"),
        ({"require": {"params": 5}}, {}, "require.params: 5 is not allowed"),
        ({"require": {"params": [None, 10]}}, {}, "only 0 of 50 candidates"),
        ({"require": {"parms": [None, 10]}}, {}, "did you mean 'params'"),
        ({"supernet": {"epohcs": 3}}, {}, "did you mean 'epochs'"),
        ({"screen": {"draw": 3}}, {}, "did you mean 'draws'"),
        ({"screen": {"draws": 0}}, {}, "screen.draws: 0 is not allowed"),
        ({"screen": {"pictures": 0}}, {}, "screen.pictures: 0 is not allowed"),
        ({"screen": {"keep": 0.5, "threshold": 1.0}}, {}, "exclude each other"),
        ({"screen": {"keep": 0.0}}, {}, "screen: keep: 0"),
        ({"screen": {"last": 4}}, {}, r"last: 4 is not allowed; 1 to 3 \(the cells\)"),
    ],
)
def test_refusals_come_before_any_trial(
    tmp_path: Path, arguments: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        search(robnet(), evaluator(tmp_path, **changes), RobustOneShot(**arguments))
    assert not list(tmp_path.iterdir())


def test_screening_needs_cells(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no list of modules 'cells'"):
        search(OwnSpace(), evaluator(tmp_path), RobustOneShot(screen={"draws": 4}, candidates=2))
    assert not list(tmp_path.iterdir())


def test_screening_leaves_the_paper_its_68_of_300() -> None:
    strategy = RobustOneShot(candidates=1000, screen={})
    assert strategy.candidates == 68
    assert strategy.trials == 70  # with the supernet and the screening
    assert RobustOneShot(candidates=20, screen={"threshold": 0.006}).trials == 22


def test_a_supernet_keeps_its_last_weights() -> None:
    from nni_robust.strategies._phases import supernet_recipe

    best = Recipe(keep="best", patience=3, lr=0.02)
    assert supernet_recipe(None, best) == Recipe(lr=0.02)
    assert supernet_recipe(None, None) is None
    assert supernet_recipe(Recipe(lr=0.3), best) == Recipe(lr=0.3)
    with pytest.raises(UserError, match=r"strategy\.supernet\.keep: 'best' is not allowed; 'last'"):
        supernet_recipe(best, None)
