"""Accuracy and loss over strengths, against closed forms and attacks made one by one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.data import load_dataset
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.reliability import Reliability
from nni_robust.spectrum import (
    MEAN_STRENGTHS,
    SEARCH_STRENGTHS,
    SEARCH_WEIGHTS,
    Spectrum,
    count_passes,
    evaluate_spectrum,
    spectrum_losses,
)
from nni_robust.threat import ThreatModel, eps_label

EPS = (0.02, 0.05, 0.08, 0.11, 0.17, 0.25)
# Wsr-NAS, table 1: accuracy at 0.03, 0.1, 0.17 and 0.25, and the average that it prints.
TABLE = {
    "ResNet-50, Multi-Adv": ((37.0, 12.5, 6.3, 3.5), 14.8),
    "WRN-34-10, TRADES-1": ((46.1, 18.1, 11.2, 7.9), 20.8),
    "PVLL, PGD-7": ((47.4, 15.7, 7.3, 3.8), 18.6),
    "NASNet, TRADES-1": ((49.1, 15.5, 4.4, 0.5), 17.4),
    "DARTS, TRADES-1": ((46.9, 9.3, 1.23, 0.1), 14.4),
    "RobNet-L, PGD-7": ((49.4, 3.1, 1.8, 0.7), 13.8),
    "RACL, PGD-7": ((47.9, 22.4, 14.0, 9.4), 23.4),
    "AdvRush, PGD-7": ((48.7, 22.3, 10.8, 4.9), 21.7),
    "RobNet-S, TRADES-1": ((46.9, 11.6, 4.11, 1.27), 15.8),
    "RACL, TRADES-1": ((46.9, 11.6, 2.8, 0.3), 15.4),
    "AdvRush, TRADES-1": ((48.2, 11.8, 3.1, 0.3), 15.8),
    "E2R-NAS, TRADES-1": ((40.5, 14.5, 10.2, 6.9), 18.0),
    "NAS-OOD, TRADES-1": ((50.3, 20.6, 10.5, 3.8), 21.3),
    "WsrNet-Naive-1, TRADES-1": ((45.8, 19.1, 13.3, 8.6), 21.7),
    "WsrNet-Naive-3, TRADES-1": ((45.9, 20.3, 13.3, 8.7), 22.1),
    "WsrNet-Naive-6, TRADES-1": ((46.3, 20.1, 15.6, 9.41), 22.9),
    "WsrNet-Basic, PGD-7": ((48.9, 22.3, 15.7, 12.4), 24.8),
    "WsrNet-Robust, PGD-7": ((48.4, 27.2, 20.3, 15.5), 27.9),
    "WsrNet-Plus, PGD-7": ((48.9, 23.1, 17.0, 13.7), 25.7),
    "WsrNet-Basic, TRADES-1": ((45.9, 20.0, 14.1, 9.4), 22.4),
    "WsrNet-Plus, TRADES-1": ((47.5, 22.1, 16.0, 11.3), 24.2),
}
# The one row whose average is not that of its figures.
MISPRINT = "RobNet-S, TRADES-1"


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained adversarially on digits, in training mode, and pictures."""
    data = load_dataset("digits")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    adversary = attack("pgd", eps=0.08, steps=3)
    for epoch in range(5):
        for x, y in data.train.batches(64, shuffle=True, epoch=epoch):
            loss = F.cross_entropy(net(adversary(net, x, y, seed=epoch)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x, y = next(iter(data.validation.batches(250)))
    return net.train(), x, y


def spectrum(curve: dict[float, float], clean: float = 1.0, **changes: Any) -> Spectrum:
    parts: dict[str, Any] = {
        "losses": dict.fromkeys(curve, 0.0),
        "keys": {eps: f"pgd20@{eps:g}" for eps in curve},
        "weights": dict.fromkeys(curve, 1.0),
        **changes,
    }
    parts["reliability"] = Reliability.unknown("made by hand")
    return Spectrum(curve, clean, **parts, n=1, passes=0, forwards=0, seconds=0.0)


@pytest.mark.parametrize("name", ["fgsm", "pgd10", {"name": "pgd", "steps": 4, "rel_step": 2.5}])
@pytest.mark.parametrize("warm", [True, False])
def test_linear_network_in_closed_form(name: Any, warm: bool) -> None:
    """With two classes a picture breaks when eps exceeds margin / ||w||_1."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    x = 0.3 + 0.4 * torch.rand(300, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    y[:20] = 1 - y[:20]
    w = (model[1].weight[0] - model[1].weight[1]).detach()
    gap = (logits[:, 0] - logits[:, 1]) * torch.where(y == 0, 1, -1)
    radius = gap / w.abs().sum()
    eps_values = radius[20:].quantile(torch.tensor([0.3, 0.1, 0.6, 0.9]).double()).tolist()
    found = evaluate_spectrum(
        model, (x, y), [*eps_values, 0], name, warm_start=warm, batch_size=64, seed=3
    )
    assert found.clean == 280 / 300
    assert found.n == 300
    assert list(found.accuracy) == sorted([0.0, *eps_values])
    for eps, accuracy in found.accuracy.items():
        assert accuracy == (radius > eps).double().mean().item()
    # Every gradient step of the loop is a pass; nobody is attacked after it broke.
    assert found.passes <= 280 + sum(10 * (radius > e).sum().item() for e in [0, *eps_values])


def test_losses_of_a_linear_network_in_closed_form() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    x = 0.4 + 0.2 * torch.rand(50, 3, 4, 4, dtype=torch.float64)
    y = torch.randint(2, (50,))
    with torch.no_grad():
        logits = model(x)
    w = (model[1].weight[0] - model[1].weight[1]).detach()
    margin = (logits[:, 0] - logits[:, 1]) * torch.where(y == 0, 1, -1)
    spec = {"name": "pgd", "steps": 6, "random_start": False}
    found = spectrum_losses(model, x, y, (0.1, 0, 0.2, 0.3), spec, extra=2, batch_size=16)
    assert list(found.losses) == list(found.adversarial) == [0, 0.1, 0.2, 0.3]
    for eps, loss in found.losses.items():
        worst = F.softplus(-(margin - eps * w.abs().sum()))
        torch.testing.assert_close(loss, worst)
    assert found.passes == 50 * (6 + 2 + 2)
    assert torch.equal(found.adversarial[0], x)
    cold = spectrum_losses(model, x, y, (0.1, 0.2, 0.3), spec, warm_start=False)
    assert cold.passes == 50 * 18


def test_warm_start_is_as_strong_as_cold_attacks(trained: Any) -> None:
    """Never more than 1 % of the pictures above separate PGD of as many steps."""
    model, x, y = trained
    for name in ("pgd7", "pgd20", "mi-fgsm10"):
        warm = evaluate_spectrum(model, (x, y), EPS, name)
        cold = evaluate_spectrum(model, (x, y), EPS, name, warm_start=False)
        values = list(warm.accuracy.values())
        assert values == sorted(values, reverse=True)
        assert len(set(values)) > 3
        for eps in EPS:
            alone = evaluate(model, (x, y), name, threat=ThreatModel("linf", eps))
            (result,) = alone.attacks.values()
            assert warm.accuracy[eps] <= result.accuracy + 0.01
            assert cold.accuracy[eps] <= result.accuracy
            if name == "pgd20":
                assert abs(warm.accuracy[eps] - result.accuracy) <= 0.02
        assert warm.losses[EPS[-1]] > warm.losses[EPS[0]]


def test_warm_losses_with_few_steps_reach_cold_ones(trained: Any) -> None:
    model, x, y = trained
    warm = spectrum_losses(model, x, y, EPS, "pgd7", extra=3)
    cold = spectrum_losses(model, x, y, EPS, "pgd7", warm_start=False)
    assert warm.passes == len(x) * (7 + 5 * 3)
    assert cold.passes == len(x) * 42
    for first, second in itertools.pairwise(EPS):
        assert (warm.losses[second] >= warm.losses[first]).all()
        assert warm.losses[second].mean() >= 0.97 * cold.losses[second].mean()
    model.eval()
    for eps, adv in warm.adversarial.items():
        assert (adv.double() - x.double()).abs().max() <= eps
        assert adv.min() >= 0
        assert adv.max() <= 1
        with torch.no_grad():
            loss = F.cross_entropy(model(adv), y, reduction="none")
        torch.testing.assert_close(loss, warm.losses[eps], rtol=1e-4, atol=1e-4)
    model.train()
    parts = spectrum_losses(model, x, y, EPS, "pgd7", extra=3, batch_size=60)
    for eps in EPS:
        assert (parts.losses[eps] - warm.losses[eps]).abs().mean() < 1e-3


def test_one_strength_is_the_evaluation(trained: Any) -> None:
    model, x, y = trained
    for norm, eps in (("linf", "8/255"), ("l2", 0.5)):
        found = evaluate_spectrum(model, (x, y), [eps], "pgd5", norm=norm, seed=4)
        alone = evaluate(model, (x, y), "pgd5", threat={"norm": norm, "eps": eps}, seed=4)
        assert {k: found.metrics()[k] for k in alone.metrics()} == alone.metrics()


def test_the_network_is_left_bit_for_bit(trained: Any) -> None:
    model, x, y = trained
    before = [v.numpy().tobytes() for v in model.state_dict().values()]
    evaluate_spectrum(model, (x, y), (0.05, 0.25), "pgd3")
    spectrum_losses(model, x, y, (0.05, 0.25), "pgd3")
    assert [v.numpy().tobytes() for v in model.state_dict().values()] == before
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not model._forward_hooks


def test_l2_and_other_attacks(trained: Any) -> None:
    model, x, y = trained
    data = (x[:40], y[:40])
    found = evaluate_spectrum(model, data, (0.5, 1.5, 2.9), "pgd10", norm="l2")
    assert list(found.metrics()) == [
        "clean", "pgd10-l2@0.5", "pgd10-l2@1.5", "pgd10-l2@2.9", "average", "auc",
    ]  # fmt: skip
    values = list(found.accuracy.values())
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]
    # An attack that is no gradient loop of ours has no warm start, and the curve still never rises.
    other = evaluate_spectrum(model, data, (0.05, 0.15), "torchattacks:PGD")
    assert list(other.keys.values()) == ["torchattacks:PGD@0.05", "torchattacks:PGD@0.15"]
    assert other.accuracy[0.15] <= other.accuracy[0.05] <= other.clean


def test_steps_can_differ_between_strengths(trained: Any) -> None:
    model, x, y = trained
    keys = ["pgd9@0.02", "pgd3@0.05"]
    for steps in ([3, 9], {"0.05": 3, 0.02: 9}):
        found = evaluate_spectrum(model, (x, y), (0.05, 0.02), "pgd20", steps=steps)  # type: ignore[arg-type]
        assert list(found.keys.values()) == keys
    both = evaluate_spectrum(model, (x, y), (0.05, 0.02), "pgd20", steps=2)
    assert list(both.keys.values()) == ["pgd2@0.02", "pgd2@0.05"]
    named = {"name": "pgd", "label": "mine"}
    same = evaluate_spectrum(model, (x, y), (0.05, 0.02), named, steps=2)
    assert list(same.keys.values()) == ["mine@0.02", "mine@0.05"]
    assert same.accuracy == both.accuracy


def test_an_attack_can_start_from_given_pictures() -> None:
    """Where the gradient is zero an attack stays at its start, moved into ball and box."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    nn.init.zeros_(model[1].weight)
    torch.manual_seed(0)
    x, y = torch.rand(6, 3, 4, 4), torch.arange(6) % 3
    start = x + 0.3 * torch.randn_like(x)
    made = attack("pgd3", eps=0.1)
    adv = made.starting_from(start)(model, x, y)  # type: ignore[attr-defined]
    expected = torch.minimum(torch.maximum(start, x - 0.1), x + 0.1).clamp(0, 1)
    torch.testing.assert_close(adv, expected)
    assert not torch.equal(made(model, x, y, seed=0), adv)  # the attack itself is as it was


def test_relative_step(trained: Any) -> None:
    model, x, y = trained
    relative = {"name": "pgd", "steps": 5, "rel_step": 2.5, "random_start": False}
    found = spectrum_losses(model, x, y, (0.08,), relative)
    plain = attack("pgd5", eps=0.08, step_size=0.04, random_start=False)(model, x, y)
    better = spectrum_losses(model, x, y, (0,)).losses[0] <= found.losses[0.08]
    assert better.all()
    same = (found.adversarial[0.08] == plain).flatten(1).all(1)
    assert same.float().mean() > 0.95  # the others had a smaller loss than the picture itself


def test_area_average_and_mean() -> None:
    """Acceptance test 10 of the specification, and the definition of the area."""
    for name, (row, printed) in TABLE.items():
        found = spectrum(dict(zip(MEAN_STRENGTHS, (v / 100 for v in row), strict=True)))
        mean = found.mean()
        assert mean is not None
        assert (abs(100 * mean - printed) <= 0.051) == (name != MISPRINT)
        assert found.average == pytest.approx(mean)
    # A straight line from 1 at 0 to 0 at 0.2 covers one half, wherever it is measured.
    for points in ((0.2,), (0.1, 0.2), (0, 0.05, 0.2)):
        assert spectrum({e: 1 - e / 0.2 for e in points}).auc == pytest.approx(0.5)
    assert spectrum({0.1: 0.4}, clean=0.4).auc == pytest.approx(0.4)
    assert spectrum({0.0: 0.4}, clean=0.4).auc == 0.4
    assert spectrum({0.1: 0.4}).mean() is None
    weighed = spectrum({0.1: 0.6, 0.2: 0.2}, weights={0.1: 3.0, 0.2: 1.0})
    assert weighed.average == pytest.approx(0.5)
    assert sum(SEARCH_WEIGHTS) == 28
    assert len(SEARCH_WEIGHTS) == len(SEARCH_STRENGTHS)


def test_weights(trained: Any) -> None:
    model, x, y = trained
    for weights in ([1, 3, 0], {0.1: 1, "0.2": 3, 0: 0}):
        found = evaluate_spectrum(model, (x, y), ("0.1", 0.2, 0), "fgsm", weights=weights)  # type: ignore[arg-type]
        expected = (found.accuracy[0.1] + 3 * found.accuracy[0.2]) / 4
        assert found.average == pytest.approx(expected)
    plain = evaluate_spectrum(model, (x, y), (0.1, 0.2, 0), "fgsm")
    assert plain.average == pytest.approx((plain.accuracy[0.1] + plain.accuracy[0.2]) / 2)


def test_passes_are_counted() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(5, 3, 2, 2)
    with count_passes(model) as passes:
        with torch.no_grad():
            model(x)
        model(x).sum().backward()
        model(x)
        logits = model(x.requires_grad_())
        torch.autograd.grad(logits.sum(), x, retain_graph=True)
        torch.autograd.grad(logits.sum(), x)
    model(x)
    assert (passes.backward, passes.forward) == (10, 10)
    assert passes.equivalent == pytest.approx(10 + 10 / 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eps_values": []}, "at least one eps"),
        ({"eps_values": "0.1"}, "eps_values: '0.1'"),
        ({"eps_values": [0.1, 2]}, "threat.eps: 2"),
        ({"eps_values": [0.1, math.nan]}, "threat.eps: nan"),
        ({"attack": {"name": "pgd", "eps": 0.1}}, "without eps and norm"),
        ({"attack": attack("pgd5")}, "a name or a mapping"),
        ({"attack": "pdg5"}, "unknown attack"),
        ({"attack": {"name": "pgd", "targeted": True}}, "targeted"),
        ({"attack": {"name": "fgsm", "rel_step": 1}}, "has no steps"),
        ({"attack": {"name": "pgd", "rel_step": 0}}, "rel_step: 0"),
        ({"attack": {"name": "pgd", "rel_step": 1, "step_size": 0.1}}, "give one"),
        ({"steps": [3]}, "1 numbers for 2 strengths"),
        ({"steps": 0}, "steps: 0"),
        ({"steps": {0.1: 3}}, "no number of steps for eps 0.2"),
        ({"steps": 3, "attack": "fgsm"}, "has no steps"),
        ({"weights": [1]}, "1 numbers for 2 strengths"),
        ({"weights": {0.3: 1}}, "none of the strengths"),
        ({"weights": [0, 0]}, "at least one"),
        ({"weights": [1, -1]}, "weights: -1"),
        ({"weights": 3}, "weights: 3"),
        ({"norm": "l1"}, "norm"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input(change: dict[str, Any], says: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    data = (torch.rand(4, 3, 2, 2), torch.arange(4) % 3)
    given: dict[str, Any] = {"eps_values": (0.1, 0.2), "attack": "pgd2", **change}
    with pytest.raises(UserError, match=says):
        evaluate_spectrum(model, data, **given)


def test_keys_are_those_of_evaluate(trained: Any) -> None:
    model, x, y = trained
    found = evaluate_spectrum(model, (x, y), ("8/255", 0.06), "fgsm", limit=20)
    assert list(found.keys.values()) == [f"fgsm@{eps_label(e)}" for e in (8 / 255, 0.06)]
    assert found.n == 20
    assert found.curve() == list(found.accuracy.items())
