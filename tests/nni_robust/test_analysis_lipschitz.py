"""Local Lipschitz values against closed forms."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from nni_robust.analysis import lipschitz_value, local_lipschitz
from nni_robust.errors import UserError


def linear(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=bias)).double()


def test_a_linear_network_has_the_closed_form() -> None:
    """|W d|_1 / |d|_inf for each picture; the biases cancel."""
    model = linear()
    x = torch.rand(6, 3, 2, 2, dtype=torch.float64) * 0.8 + 0.1
    d = (torch.rand_like(x) - 0.5) * 0.1
    weight = model[1].weight.detach()
    expected = [float((weight @ d[i].flatten()).abs().sum() / d[i].abs().max()) for i in range(6)]
    assert local_lipschitz(model, x, x + d) == pytest.approx(sum(expected) / 6, rel=1e-9)


def test_pictures_without_a_change_do_not_count() -> None:
    model = linear()
    x = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    other = x.clone()
    other[1] = 1 - x[1]
    assert local_lipschitz(model, x, other) == pytest.approx(
        local_lipschitz(model, x[1:2], other[1:2])
    )
    assert local_lipschitz(model, x, x) == 0.0


def test_the_repositorys_formula() -> None:
    """Its 1e-6 is added to every pixel's difference, and every picture counts."""
    model = linear()
    x = torch.rand(3, 3, 2, 2, dtype=torch.float64) * 0.8
    other = x.clone()
    other[0] += 0.1
    moved = (model(x) - model(other)).detach().abs().sum(1)
    ratios = moved / (x - other + 1e-6).abs().flatten(1).max(1).values
    assert local_lipschitz(model, x, other, legacy=True) == pytest.approx(float(ratios.mean()))
    assert local_lipschitz(model, x, other) == pytest.approx(3 * float(ratios.mean()), rel=1e-4)


def test_one_step_along_the_sign_reaches_the_norm_of_the_gradient() -> None:
    """Two logits w·x and -w·x: FGSM moves each by eps |w|_1, so the value is 2 |w|_1."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 12))

        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1) @ self.weight
            return torch.stack([z, -z], 1)

    model, x = Two(), torch.full((5, 3, 2, 2), 0.5)
    value = lipschitz_value(
        model, (x, torch.tensor([0, 1, 0, 1, 1])), "fgsm", threat={"eps": 0.1}, batch_size=2
    )
    assert value == pytest.approx(2 * float(model.weight.detach().abs().sum()), rel=1e-5)
    few = lipschitz_value(model, (x, torch.zeros(5).long()), "fgsm", limit=1)
    assert math.isfinite(few)


def test_the_network_is_left_as_it_was_and_asked_in_evaluation_mode() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4))
    model.train()
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(6, 3, 2, 2)
    first = local_lipschitz(model, x, x.flip(0))
    assert first == local_lipschitz(model, x, x.flip(0))  # no dropout
    lipschitz_value(model, (x, torch.zeros(6).long()), "pgd3", seed=2)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_value_depends_on_the_seed_and_not_on_the_batch() -> None:
    model = linear().float()
    data = torch.rand(7, 3, 2, 2), torch.arange(7) % 5
    whole = lipschitz_value(model, data, "pgd1", batch_size=7)
    assert lipschitz_value(model, data, "pgd1", batch_size=3) == pytest.approx(whole, rel=1e-5)
    assert lipschitz_value(model, data, "pgd1", batch_size=3, seed=1) != pytest.approx(whole)


def test_shapes_must_agree() -> None:
    with pytest.raises(UserError, match="two batches of the same shape are needed"):
        local_lipschitz(linear(), torch.rand(2, 3, 2, 2), torch.rand(1, 3, 2, 2))
