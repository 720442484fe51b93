"""Recipes of Wsr-NAS against the tables of its scripts."""

from __future__ import annotations

import pytest

from nni_robust.threat import ThreatModel
from nni_robust.training import load_recipe


@pytest.mark.parametrize(
    ("name", "batch", "decay"),
    [
        ("wsrnas-pgd", 400, 5e-4),
        ("wsrnas-pgd-robust", 64, 1e-4),
        ("wsrnas-pgd-m", 400, 7e-4),
        ("wsrnas-trades", 400, 5e-4),
    ],
)
def test_cifar10(name: str, batch: int, decay: float) -> None:
    found = load_recipe(name)
    recipe = found.recipe
    assert found.threat == ThreatModel(norm="linf", eps=0.031)
    assert (recipe.batch_size, recipe.weight_decay) == (batch, decay)
    assert (recipe.epochs, recipe.grad_clip, recipe.attack.steps) == (200, 5, 7)
    rates = {0: 0.1, 98: 0.1, 99: 0.01, 148: 0.01, 149: 0.001, 199: 0.001}
    for epoch, rate in rates.items():
        assert recipe.learning_rate(10 * epoch + 9, 10) == pytest.approx(rate)
    trades = name.endswith("trades")
    assert recipe.loss == ("trades" if trades else "madry")
    step = 0.01 if trades else 0.031 * 2.5 / 7
    assert recipe.attack.step_size == pytest.approx(step)
    assert recipe.beta == (1.0 if trades else None)


def test_imagenet() -> None:
    """The triangle of the code at the ends of its epochs: lr e/25, then lr (52 - e)/25, to 51."""
    found = load_recipe("wsrnas-imagenet-fast")
    recipe = found.recipe
    assert found.threat == ThreatModel(norm="linf", eps=4 / 255)
    assert (recipe.loss, recipe.epochs, recipe.batch_size) == ("fast", 51, 256)
    assert (recipe.weight_decay, recipe.label_smoothing) == (2e-4, 0.1)
    assert recipe.attack.step_size == pytest.approx(4 / 255)
    for epoch, rate in {10: 0.1 * 10 / 25, 25: 0.1, 40: 0.1 * 12 / 25}.items():
        assert recipe.learning_rate(100 * epoch, 100) == pytest.approx(rate, abs=0.006)
