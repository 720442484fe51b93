"""Who survives a screening, and what a screening measures of a broken supernet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.nas.space import SimplifiedModelSpace

from nni_robust.errors import UserError
from nni_robust.search_spaces import RobNetSpace
from nni_robust.store import Store
from nni_robust.strategies._screening import FspScreening, Screen, hand_over, survivors
from nni_robust.supernet import build_supernet
from nni_robust.training.weights import save_weights

#: Means of the last of two cells: 4, 1, -, 3, 2.
SCREENED: list[dict[str, Any]] = [
    {"distance": [0.0, 4.0]},
    {"distance": [9.0, 1.0]},
    {"error": "not finite"},
    {"distance": [0.0, 3.0]},
    {"distance": [5.0, 2.0]},
]


@pytest.mark.parametrize(
    ("settings", "most", "who"),
    [
        ({"keep": 0.5}, 9, [1, 4]),  # half of the four that could be measured
        ({"keep": 1.0}, 9, [0, 1, 3, 4]),
        ({"keep": 1.0}, 3, [1, 3, 4]),  # the smallest, in the order of the draws
        ({"threshold": 3.0}, 9, [1, 3, 4]),
        ({"threshold": 3.0}, 1, [1]),
        ({"keep": 0.25, "last": 2}, 9, [3]),
    ],
)
def test_survivors(settings: dict[str, Any], most: int, who: list[int]) -> None:
    """Means of both cells, for the last case: 2, 5, -, 1.5, 3.5."""
    assert survivors(SCREENED, Screen(**settings), most) == who


def test_nobody_survives() -> None:
    with pytest.raises(UserError, match=r"threshold 0\.5 is below the smallest distance .* 1$"):
        survivors(SCREENED, Screen(threshold=0.5), 9)


def test_networks_that_cannot_be_measured_are_told(tmp_path: Path) -> None:
    """Weights that are not finite: each sample has its reason, and the trial fails with one."""
    torch.manual_seed(0)
    space = RobNetSpace(num_classes=10, init_channels=2, cells=3)
    supernet = build_supernet(RobNetSpace(num_classes=10, init_channels=2, cells=3))
    with torch.no_grad():
        supernet.classifier.weight.fill_(torch.nan)
    store = Store(tmp_path)
    save_weights(supernet, store.folder("broken") / "weights.safetensors", {})
    sample = RobNetSpace.decode("33123210120232", cells=3)
    screening: Any = FspScreening(
        task={"threat": {"eps": 0.1}, "train_limit": 32, "validation_limit": 16},
        train={"batch_size": 32, "attack": {"steps": 1}},
        supernet="broken",
        samples=hand_over(store, [sample, sample]),
        store=str(tmp_path),
        pictures=8,
        recalibrate_batches=1,
    )
    model = SimplifiedModelSpace.from_model(space, screening).freeze(sample)
    sent: Any = nni.load(nni.dump(model))  # a trial gets it through JSON, and finds the same key
    assert sent.evaluator.key(sent) == screening.key(model)
    with pytest.raises(UserError, match="zero candidates left: none can be measured"):
        screening._execute(model)
    lines = (store.folder(screening.key(model)) / "screened.jsonl").read_text().splitlines()
    assert len(lines) == 2
