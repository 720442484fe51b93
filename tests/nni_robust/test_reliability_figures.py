"""Figures that contradict each other, or what is possible, raise their flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel
from nni_robust.transfer import transfer_table

EPS = 0.08
N = 160
Flags = Callable[..., set[str]]


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sign: Tensor) -> Tensor:
        ctx.save_for_backward(sign)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class Misleading(Wrapped):
    """Gradients of the wrong sign: attacks that follow them make the network surer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Backwards.apply(x, torch.tensor(-1.0)))


class MisleadingFurtherOut(Wrapped):
    """Gradients are right on the clean pictures (of bytes) only: one step sees a right one."""

    def forward(self, x: Tensor) -> Tensor:
        clean = ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) < 1e-6
        return self.net(Backwards.apply(x, torch.where(clean, 1.0, -1.0).view(-1, 1, 1, 1)))


def test_square_breaks_what_gradients_do_not(
    standard: nn.Module, digits: Any, flags: Flags
) -> None:
    square: Any = {"name": "square", "steps": 300}
    assert flags(Misleading(standard), digits, ["pgd10", square]) == {"black-box-wins"}
    found = evaluate(Misleading(standard), digits, ["pgd10", square], threat={"eps": EPS})
    gap = found.attacks["pgd10@0.08"].accuracy - found.attacks["square300@0.08"].accuracy
    assert found.reliability["black-box-wins"].figures["gap"] == pytest.approx(gap)
    assert gap > 0.002


def test_transfer_breaks_what_gradients_do_not(
    standard: nn.Module, robust: nn.Module, digits: Any
) -> None:
    networks = {"plain": standard, "misleading": Misleading(standard), "robust": robust}
    table = transfer_table(networks, networks, digits, "pgd10", threat=ThreatModel(eps=EPS))
    (reason,) = table.unreliable
    assert reason.startswith("black-box-wins: target 'misleading': examples of 'plain' leave ")
    assert transfer_table({"p": standard}, networks, digits, "pgd5").unreliable == []


def test_square_inside_autoattack(
    standard: nn.Module, robust: nn.Module, digits: Any, flags: Flags
) -> None:
    """The pictures that only Square breaks, after the three attacks with gradients."""
    small: Any = {"name": "autoattack", "steps": 5, "targets": 2, "queries": 200}
    x, y = (part[:48] for part in digits)
    found = evaluate(Misleading(standard), (x, y), small, threat={"eps": EPS}).reliability
    assert [check.name for check in found.failed] == ["black-box-wins"]
    only = found["black-box-wins"].figures["gap"] * 48
    assert only == pytest.approx(round(only))
    assert flags(robust, (x, y), small) <= {"black-box-wins"}
    made = attack("autoattack", eps=EPS, steps=5, targets=2, queries=200)
    again = evaluate(Misleading(standard), (x, y), made, threat={"eps": EPS}).reliability
    third = evaluate(Misleading(standard), (x, y), made, threat={"eps": EPS}).reliability
    for other in (again, third):  # an attack that is used twice does not count twice
        assert other["black-box-wins"].figures == found["black-box-wins"].figures


def test_accuracy_where_everything_is_allowed(
    standard: nn.Module, digits: Any, flags: Flags
) -> None:
    assert flags(Misleading(standard), digits, thorough=True) == {"large-eps"}
    assert flags(Misleading(standard), digits, ["pgd10", {"name": "pgd10", "eps": 0.5}]) == {
        "large-eps"
    }
    assert flags(Misleading(standard), digits) == set()  # nothing that is cheap can see it


def test_many_steps_weaker_than_one(standard: nn.Module, digits: Any, flags: Flags) -> None:
    model = MisleadingFurtherOut(standard)
    assert flags(model, digits, ["fgsm", "pgd10"]) == {"rises-with-steps"}
    found = evaluate(model, digits, ["fgsm", "pgd10"], threat={"eps": EPS})
    one, many = (result.accuracy for result in found.attacks.values())
    assert found.reliability["rises-with-steps"].figures["rise"] == pytest.approx(many - one)


def test_attack_that_is_too_short(robust: nn.Module, digits: Any, flags: Flags) -> None:
    short: Any = {"name": "pgd", "steps": 2, "step_size": 0.01, "random_start": False}
    assert flags(robust, digits, short, thorough=True) == {"more-steps", "reaches-eps"}
    long = {**short, "steps": 40}  # beside it the short one does not matter
    assert flags(robust, digits, [short, long], thorough=True) == set()
    found = evaluate(robust, digits, short, threat={"eps": EPS}, thorough=True)
    before, after = (
        evaluate(robust, digits, {**short, "steps": k}, threat={"eps": EPS}).worst for k in (2, 4)
    )
    assert found.reliability["more-steps"].figures["change"] == pytest.approx(before - after)
