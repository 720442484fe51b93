"""Counting parameters and MACs of any network."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from nni_robust.cost import Cost, measure_cost


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


# By hand: 3*6*9 weights at 8x8, 6*9 weights at 4x4, 6*5 weights once.
BY_HAND = Cost(params=3 * 6 * 9 + 6 + 12 + 6 * 9 + 35, macs=162 * 64 + 54 * 16 + 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_counts_by_hand(dtype: torch.dtype) -> None:
    assert measure_cost(small_network().to(dtype), (3, 8, 8)) == BY_HAND


def test_meta_network_is_counted_without_weights() -> None:
    with torch.device("meta"):
        model = small_network()
    assert measure_cost(model, (3, 8, 8)) == BY_HAND


def test_only_trainable_parameters_count() -> None:
    model = small_network()
    model[0].requires_grad_(False)
    assert measure_cost(model, (3, 8, 8)) == Cost(BY_HAND.params - 168, BY_HAND.macs)


def test_model_is_left_as_it_was() -> None:
    model = small_network().train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    measure_cost(model, (3, 8, 8))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_flags_survive_a_picture_that_does_not_fit() -> None:
    model = small_network().train()
    with pytest.raises(RuntimeError):
        measure_cost(model, (1, 8, 8))
    assert all(module.training for module in model.modules())


def test_import_is_light() -> None:
    code = "import sys, nni_robust.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
