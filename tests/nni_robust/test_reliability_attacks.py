"""Attacks that are broken on purpose raise their flag."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import Attack
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel

EPS = 0.08
N = 160
Flags = Callable[..., set[str]]


class Odd(Attack):
    """Calls back in place of the contract of :class:`Attack`."""

    def __init__(self, change: Callable[[nn.Module, Tensor, float], Tensor], eps: float) -> None:
        super().__init__(ThreatModel(eps=eps), "odd")
        self.change = change

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **_: Any) -> Tensor:
        return self.change(model, x, self.threat.eps)

    def _run(self, *_: Any) -> Tensor:
        raise NotImplementedError


def far(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    return (x + 1.1 * eps).clamp(0, 1)


def dark(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    return x - eps


@pytest.mark.parametrize("change", [far, dark])
def test_attacks_that_leave_ball_or_box(change: Any, robust: nn.Module, digits: Any) -> None:
    found = evaluate(robust, digits, Odd(change, EPS)).reliability
    assert [check.name for check in found.failed] == ["outside-ball"]
    right = int(evaluate(robust, digits, ()).clean_correct.sum())
    assert found["outside-ball"].figures == {"outside": right, "pictures": right}


def test_allowed_pictures_are_inside_in_both_norms(robust: nn.Module, digits: Any) -> None:
    """The rim of the ball is allowed, a millionth more in the sums is rounding."""
    for norm, eps in (("linf", EPS), ("l2", 1.0)):
        found = evaluate(robust, digits, "fgsm", threat={"norm": norm, "eps": eps}).reliability
        assert found["outside-ball"].status == "passed"
        assert found["outside-ball"].figures["outside"] == 0


def test_attack_that_disturbs_the_network(robust: nn.Module, digits: Any, flags: Flags) -> None:
    model = copy.deepcopy(robust)

    def shift(net: nn.Module, x: Tensor, eps: float) -> Tensor:
        with torch.no_grad():
            net[-1].bias += torch.arange(10) * 3  # type: ignore[index, operator]
        return x

    assert flags(model, digits, Odd(shift, EPS)) == {"eps-zero"}


def test_attack_in_training_mode(robust: nn.Module, digits: Any, flags: Flags) -> None:
    assert flags(robust, digits, {"name": "pgd5", "bn_mode": "train"}) == {"attack-mode"}


def test_attack_that_is_weaker_in_a_larger_ball(
    standard: nn.Module, digits: Any, flags: Flags
) -> None:
    def only_small(net: nn.Module, x: Tensor, eps: float) -> Tensor:
        return (x + eps * (1 - 2 * x)).clamp(0, 1) if eps < 0.4 else x

    assert evaluate(standard, digits, Odd(only_small, 0.3)).worst < 1 - 2 / N
    two = [Odd(only_small, 0.3), Odd(only_small, 0.45)]
    assert flags(standard, digits, two) == {"rises-with-eps"}
