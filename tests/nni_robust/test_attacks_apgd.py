"""APGD: checkpoints and losses against closed forms, its iterates against a plain loop."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
import torchattacks
from small_networks import conv_net, labelled
from torch import Tensor, nn

from nni_robust.attacks import Victim, attack
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import ball_around
from nni_robust.attacks._survivors import Survivors
from nni_robust.attacks.apgd import checkpoints, targeted_dlr
from nni_robust.errors import UserError
from nni_robust.spectrum import count_passes
from nni_robust.threat import ThreatModel

# --- the schedule --------------------------------------------------------------------------------


def test_checkpoints_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 50, 100, 250, 1000])
def test_checkpoints_by_their_recursion(steps: int) -> None:
    """p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), rounded up."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    expected = sorted({math.ceil(q * steps) for q in p[1:] if q <= 1})
    assert checkpoints(steps) == expected


# --- losses --------------------------------------------------------------------------------------


def test_targeted_dlr_in_closed_form() -> None:
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0, -3.0], [0.0, 3.0, 7.0, 1.0, 2.0]])
    y, aim = torch.tensor([0, 1]), torch.tensor([2, 4])
    # -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2)
    expected = torch.tensor([-(5 - 4) / (5 - (2 + 1) / 2), -(3 - 2) / (7 - (2 + 1) / 2)])
    torch.testing.assert_close(targeted_dlr(logits, y, aim), expected)
    torch.testing.assert_close(targeted_dlr(30 * logits - 7, y, aim), expected)


def test_targeted_dlr_of_few_classes() -> None:
    three, two = torch.tensor([[5.0, 1.0, 4.0]]), torch.tensor([[5.0, 1.0]])
    y = torch.tensor([0])
    assert float(targeted_dlr(three, y, torch.tensor([2]))) == pytest.approx(-1 / 4)
    assert float(targeted_dlr(two, y, torch.tensor([1]))) == -4


# --- the search ----------------------------------------------------------------------------------


def plain_apgd(net: nn.Module, x: Tensor, y: int, start: Tensor, eps: float, steps: int) -> Tensor:
    """Algorithm 1 for one picture in L∞, written down as it reads; the best picture."""

    def loss_and_slope(z: Tensor) -> tuple[float, Tensor]:
        leaf = z.clone().requires_grad_()
        loss = -net(leaf[None]).log_softmax(1)[0, y]
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    def project(z: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)

    step, reduced = 2 * eps, []
    z, before = start, start
    loss, slope = loss_and_slope(z)
    best, best_loss, best_slope, losses = z, loss, slope, [loss]
    best_at_check, last, marks = loss, 0, checkpoints(steps)
    for k in range(1, steps + 1):
        ahead = project(z + step * slope.sign())
        a = 1.0 if k == 1 else 0.75
        z, before = project(z + a * (ahead - z) + (1 - a) * (z - before)), z
        loss, slope = loss_and_slope(z)
        losses.append(loss)
        if loss > best_loss:
            best, best_loss, best_slope = z, loss, slope
        if k in marks:
            rises = sum(losses[i + 1] > losses[i] for i in range(last, k))
            first = rises <= 0.75 * (k - last)
            second = bool(reduced) and not reduced[-1] and best_loss <= best_at_check
            reduced.append(first or second)
            if reduced[-1]:
                step, z, slope = step / 2, best, best_slope
            best_at_check, last = best_loss, k
    return best


def test_iterates_equal_a_plain_loop() -> None:
    net = conv_net().double()
    x, y = labelled(conv_net(), 6)
    x, eps = x.double(), 0.004
    adv = attack("apgd-ce40", eps=eps)(net, x, y, seed=5)
    start = ball_around(x, ThreatModel("linf", eps)).random_start(Noise(5, torch.arange(6)), 0)
    with torch.no_grad():
        resist = (net(adv).argmax(1) == y).nonzero().flatten().tolist()
    assert len(resist) >= 3  # what is broken leaves earlier and is another picture
    for n in resist:
        best = plain_apgd(net, x[n], int(y[n]), start[n], eps, 40)
        torch.testing.assert_close(adv[n], best, rtol=0, atol=1e-9)


def test_steps_are_halved() -> None:
    """A loss with a peak inside the ball: steps of 2 eps cannot come near it, halved ones can."""

    class Peak(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = 5 + 400 * (x - 0.53).square().sum((1, 2, 3))
            return torch.stack([lead, torch.zeros_like(lead)], 1)

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    adv = attack("apgd-ce", eps=0.1)(Peak(), x, y, seed=0)
    coarse = attack("pgd100", eps=0.1, step_size=0.2)(Peak(), x, y, seed=0)
    assert abs(float(adv) - 0.53) < 0.002
    assert abs(float(coarse) - 0.53) > 0.02


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "classes"), [("apgd-ce20", 2), ("apgd-t20", 2), ("apgd-t20", 4)])
def test_linear_network_in_closed_form(name: str, classes: int, norm: Any) -> None:
    """It falls when the smallest lead over another class is below eps times its dual norm."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).double()
    x = 0.3 + 0.4 * torch.rand(60, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        net[1].bias -= net(x).mean(0)
        logits = net(x)
    y = logits.argmax(1)
    w = net[1].weight.detach()
    lead = logits.gather(1, y.unsqueeze(1)) - logits
    size = (w[y].unsqueeze(1) - w.unsqueeze(0)).norm(p=1 if norm == "linf" else 2, dim=2)
    radius = torch.where(size > 0, lead / size, torch.inf).amin(1)
    eps = float(radius.quantile(0.5))
    assert eps < 0.3  # the box does not matter
    broken = net(attack(name, eps=eps, norm=norm)(net, x, y, seed=0)).argmax(1) != y
    assert not bool((broken & (radius > eps)).any())
    assert bool(broken[radius < 0.999 * eps].all())


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_torchattacks(loss: str, norm: Any) -> None:
    net = conv_net()
    x, y = labelled(net, 80)
    eps = 0.015 if norm == "linf" else 0.15
    theirs = torchattacks.APGD(
        net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=50, loss=loss, seed=0
    )
    other = int((net(theirs(x, y)).argmax(1) != y).sum())
    ours = int((net(attack(f"apgd-{loss}50", eps=eps, norm=norm)(net, x, y)).argmax(1) != y).sum())
    assert 10 < ours < 65
    assert abs(ours - other) <= 2


def test_targets_are_the_likeliest_wrong_classes() -> None:
    net = conv_net()
    x, y = labelled(net, 10)
    y = torch.where(torch.arange(10) == 3, (y + 1) % 5, y)  # one is misclassified already
    ball = ball_around(x, ThreatModel("linf", 0.1))
    left = Survivors(Victim(net, torch.float32), y, ball, Noise(0, torch.arange(10)))
    rows = [n for n in range(10) if n != 3]
    assert left.rows.tolist() == rows
    order = [sorted(range(5), key=lambda k, n=n: -net(x)[n, k].item()) for n in rows]
    for rank in range(5):
        assert left.target(rank).tolist() == [classes[rank] for classes in order]


@pytest.mark.parametrize(("targets", "runs"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_as_many_targets_as_there_are(targets: int, runs: int) -> None:
    net = conv_net()
    x, y = labelled(net, 10)
    with count_passes(net) as passes:
        adv = attack("apgd-t2", eps=1e-5, targets=targets)(net, x, y, seed=0)
    assert bool((net(adv).argmax(1) == y).all())
    assert (passes.backward, passes.forward) == (10 * 3 * runs, 10)  # start and two steps; clean


def test_broken_pictures_leave() -> None:
    net = conv_net()
    x, y = labelled(net)
    with count_passes(net) as passes:
        attack("apgd-ce100", eps=0.5)(net, x, y, seed=0)
    assert passes.backward < 20 * len(x)


def test_restarts_and_averages() -> None:
    net = conv_net()
    x, y = labelled(net)
    counts = [
        int((net(attack("apgd-ce3", eps=0.03, restarts=r)(net, x, y, seed=0)).argmax(1) != y).sum())
        for r in (1, 5)
    ]
    assert counts[1] >= counts[0]
    once = attack("apgd-ce5", eps=0.03)(net, x, y, seed=0)
    torch.testing.assert_close(attack("apgd-ce5", eps=0.03, eot=3)(net, x, y, seed=0), once)


def test_averages_see_through_a_random_network() -> None:
    class Noisy(nn.Module):
        """Its gradient has the right sign in three of five passes only."""

        def forward(self, x: Tensor) -> Tensor:
            flip = torch.where(torch.rand(len(x)) < 0.6, 1.0, -1.0).view(-1, 1, 1, 1)
            lead = 3 + (x - (x - x.detach()) * (1 - flip)).mean((1, 2, 3))
            return torch.stack([lead, torch.zeros_like(lead), torch.zeros_like(lead)], 1)

    torch.manual_seed(0)
    x, y = torch.full((30, 1, 2, 2), 0.5), torch.zeros(30, dtype=torch.long)
    reached = [
        float((0.5 - attack("apgd-ce1", eps=0.1, eot=e)(Noisy(), x, y, seed=0)).mean())
        for e in (1, 40)
    ]
    assert reached[1] > reached[0]


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("apgd-ce", {"steps": 0}, "steps"),
        ("apgd-ce", {"restarts": 0}, "restarts"),
        ("apgd-ce", {"rho": 1.0}, "rho"),
        ("apgd-ce", {"eot": 0}, "eot"),
        ("apgd-ce", {"targets": 3}, "targets"),
        ("apgd-t", {"targets": 0}, "targets"),
    ],
)
def test_bad_settings(name: str, settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack(name, **settings)


def test_dlr_needs_three_classes() -> None:
    net = conv_net(classes=2)
    x, y = labelled(net, 4)
    with pytest.raises(UserError, match="at least 3 classes"):
        attack("apgd-dlr5")(net, x, y)


def test_names() -> None:
    for name, settings, label in (
        ("apgd-ce", {}, "apgd-ce"),
        ("apgd-ce20", {"restarts": 5}, "apgd-ce20x5"),
        ("apgd-t", {"targets": 3}, "apgd-t-3targets"),
    ):
        assert attack(name, **settings).label == label
