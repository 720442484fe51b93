"""MART against the paper's formula in float64, written once more with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack
from nni_robust.training.losses import boosted_cross_entropy, build_loss


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.rand(12, 3, 8, 8, generator=random), torch.arange(12) % 5


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("beta", [None, 2.0])
def test_formula(network: nn.Module, batch: tuple[Tensor, Tensor], beta: float | None) -> None:
    x, y = batch
    x_adv = (x + 0.05).clamp(0, 1)
    objective = build_loss(Recipe(loss="mart", beta=beta), ThreatModel())
    loss, logits = objective(lambda *b: tuple(map(network, b)), x, x_adv, y)
    p, q = (softmax(network(t).detach().double().numpy()) for t in (x, x_adv))
    total = 0.0
    for i, label in enumerate(y.tolist()):
        rival = max(q[i][k] for k in range(5) if k != label)
        kl = sum(p[i][k] * np.log(p[i][k] / q[i][k]) for k in range(5))
        weight = (5 if beta is None else beta) * (1 - p[i][label])
        total += -np.log(q[i][label]) - np.log(1 - rival) + weight * kl
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)
    assert torch.equal(logits, network(x_adv))


def test_boosted_cross_entropy_is_finite_where_probabilities_round_to_one() -> None:
    logits = torch.tensor([[0.0, 200.0, 0.0], [200.0, 0.0, 0.0]], requires_grad=True)
    losses = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    # wrong and certain: 200 from the label, 200 - log 2 from the rival; right and certain: 0
    assert losses.tolist() == pytest.approx([400 - np.log(2), 0], abs=1e-4)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_it_attacks_by_cross_entropy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    recipe = Recipe(loss="mart", attack=TrainAttack(steps=3))
    found = build_loss(recipe, ThreatModel(eps=0.1)).perturb(network, x, y, seed=5)
    assert torch.equal(found, attack("pgd3", eps=0.1)(network, x, y, seed=5))


@pytest.mark.parametrize("setting", [{"augment": ("cutmix",)}, {"label_smoothing": 0.1}])
def test_it_needs_certain_labels(setting: dict) -> None:
    with pytest.raises(UserError, match="not allowed with loss 'mart'"):
        Recipe(loss="mart", **setting)
