"""Attacks that are too weak to say anything raise their flag; attacks that are not, none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import Attack, attack
from nni_robust.evaluation import evaluate, steps_curve
from nni_robust.reliability._results import Outcome
from nni_robust.reliability._strength import _by_chance, weak_attack
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.threat import ThreatModel

EPS = 0.08
Flags = Callable[..., set[str]]
SHORT: Any = {"name": "torchattacks:PGD", "alpha": EPS / 100, "steps": 10}


class Shy(Attack):
    """Finds what PGD finds for every third picture only, and does not say how it works."""

    def __init__(self, name: str, threat: ThreatModel) -> None:
        super().__init__(threat, "shy")
        self.real = attack(name, eps=threat.eps, norm=threat.norm)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **more: Any) -> Tensor:
        found = self.real(model, x, y, **more)
        found[torch.arange(len(x)) % 3 > 0] = x[torch.arange(len(x)) % 3 > 0]
        return found

    def _run(self, *_: Any) -> Tensor:
        raise NotImplementedError


def test_steps_that_do_not_reach_the_rim(robust: nn.Module, digits: Any, flags: Flags) -> None:
    assert flags(robust, digits, SHORT) == {"reaches-eps"}
    ours: Any = {"name": "pgd", "steps": 10, "step_size": EPS / 100}
    assert flags(robust, digits, ours) == {"reaches-eps"}
    found = evaluate(robust, digits, [SHORT], threat={"eps": EPS}).reliability
    assert found["reaches-eps"].figures["share"] == pytest.approx(0.1)
    assert "10 steps of 0.0008 come to 0.008" in found["reaches-eps"].reason
    just = [{**SHORT, "alpha": EPS / 10}, {**ours, "step_size": EPS / 10}]
    found = evaluate(robust, digits, just, threat={"eps": EPS}).reliability
    assert found["reaches-eps"].status == "passed"
    # Of the defaults nobody chose the size, and few steps are known for few.
    assert flags(robust, digits, ["fgsm", "pgd2", "torchattacks:BIM"]) == set()


def test_weaker_than_one_step(robust: nn.Module, digits: Any, flags: Flags) -> None:
    assert flags(robust, digits, [SHORT, "fgsm"]) == {"reaches-eps", "weak-attack"}
    found = evaluate(robust, digits, [SHORT, "fgsm"], threat={"eps": EPS})
    many, one = (result.accuracy for result in found.attacks.values())
    check = found.reliability["weak-attack"]
    assert check.figures["gap"] == pytest.approx(many - one)
    assert f"torchattacks:PGD@0.08 leaves {many:.2%}, but fgsm@0.08, a single step," in check.reason
    assert flags(robust, digits, ["torchattacks:TIFGSM", "torchattacks:FGSM"]) == {"weak-attack"}


def test_weaker_than_another(standard: nn.Module, digits: Any, flags: Flags) -> None:
    shy = Shy("pgd10", ThreatModel(eps=EPS))
    assert flags(standard, digits, [shy, "pgd10"]) == {"weak-attack"}
    assert flags(standard, digits, [shy]) == set()  # alone nothing tells
    wider = {"name": "pgd10", "eps": 2 * EPS}
    assert flags(standard, digits, [shy, wider]) == set()  # in another ball nothing does


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["standard", "robust", "untrained"])
def test_ordinary_attacks_beside_each_other(
    kind: str, norm: Any, request: pytest.FixtureRequest, digits: Any
) -> None:
    if kind == "untrained":
        torch.manual_seed(5)
        x = digits[0]
        network: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)).eval()
        digits = x, network(x).argmax(1)
    else:
        network = request.getfixturevalue(kind)
    attacks: list[Any] = ["fgsm", "pgd2", "pgd10", "pgd20", "mi-fgsm10", "cw20", "apgd-ce20"]
    attacks += [{"name": "fab-t20", "targets": 3}, {"name": "square", "steps": 50}]
    attacks += ["torchattacks:PGD" if norm == "linf" else "torchattacks:PGDL2"]
    for eps in (0.02, 0.05, 0.08) if norm == "linf" else (0.2, 0.5, 0.8):
        found = evaluate(network, digits, attacks, threat={"norm": norm, "eps": eps})
        check = found.reliability["weak-attack"]
        assert check.status == "passed", (check.reason, found.metrics())


def test_curves_are_not_compared(robust: nn.Module, digits: Any) -> None:
    for found in (
        steps_curve(robust, digits, (1, 2, 10, 20), threat={"eps": EPS}),
        evaluate_spectrum(robust, digits, (0.02, EPS), "pgd10"),
    ):
        assert found.reliability["weak-attack"].status == "not run"
        assert found.reliability.reliable


def test_few_pictures_are_chance(standard: nn.Module) -> None:
    """Six of 30 that only the other breaks, and none the other way round: p = 1/64."""
    threat = ThreatModel(eps=EPS)
    many = attack("torchattacks:PGD", eps=EPS)
    one = attack("torchattacks:FGSM", eps=EPS)
    all_left = torch.ones(30, dtype=torch.bool)
    for broken, status in ((6, "passed"), (7, "failed")):
        other = Outcome(one, torch.arange(30) >= broken)
        assert _by_chance(other, Outcome(many, all_left)) == pytest.approx(2.0**-broken)
        assert weak_attack([Outcome(many, all_left), other]).status == status
    assert threat == many.threat


def test_chance_is_the_tail_of_a_binomial_distribution() -> None:
    made = attack("pgd10", eps=EPS)
    for strong, weak in ((3, 0), (5, 5), (30, 10), (600, 520)):
        left = torch.ones(strong + weak, dtype=torch.bool)
        other = left.clone()
        other[:strong], left[strong:] = False, False
        n = strong + weak
        tail = sum(math.comb(n, k) for k in range(strong, n + 1)) / 2**n
        assert _by_chance(Outcome(made, other), Outcome(made, left)) == pytest.approx(tail)
