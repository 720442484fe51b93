"""Square: schedule and patterns against tables and loops, moves against what they promise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.attacks.square import _window, bump, square_share
from nni_robust.errors import UserError


def make_net(classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, classes))
        with torch.no_grad():  # centred logits: all classes occur
            net[-1].bias -= net(0.3 + 0.4 * torch.rand(64, 3, 8, 8)).mean(0)
    return net


def pictures(net: nn.Module, n: int = 30) -> tuple[Tensor, Tensor]:
    x = 0.3 + 0.4 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net(x).argmax(1)


# --- the schedule --------------------------------------------------------------------------------

#: First and last step (from 0), and what the first share is divided by.
TABLE = (
    (0, 10, 1),
    (11, 50, 2),
    (51, 200, 4),
    (201, 500, 8),
    (501, 1000, 16),
    (1001, 2000, 32),
    (2001, 4000, 64),
    (4001, 6000, 128),
    (6001, 8000, 256),
    (8001, 9999, 512),
)


def test_schedule_of_the_sizes() -> None:
    for first, last, divisor in TABLE:
        assert square_share(0.8, first) == square_share(0.8, last) == 0.8 / divisor


def test_schedule_rescaled() -> None:
    """Half the steps pass through all sizes, each at half the step."""
    for first, last, divisor in TABLE:
        for step in (-(-first // 2), last // 2):
            assert square_share(0.8, step, 5000) == 0.8 / divisor


def test_windows_reach_every_place() -> None:
    numbers = torch.linspace(0, 1, 1001)[:-1]
    for length, side in ((8, 3), (5, 5), (9, 1)):
        window = _window(numbers, length, side)
        assert torch.equal(window.sum(1), torch.full((1000,), side))
        assert bool(window.any(0).all())
        starts = window.int().argmax(1).unique(return_counts=True)
        assert starts[0].tolist() == list(range(length - side + 1))
        assert int(starts[1].max() - starts[1].min()) <= 1
        gaps = (window[:, 1:] != window[:, :-1]).sum(1)
        assert int(gaps.max()) <= 2  # one piece


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 12])
def test_bump_by_its_definition(size: int) -> None:
    """Rectangles growing from the middle of each half, each adding 1/k², one half negative."""

    def half(height: int, width: int) -> Tensor:
        out = torch.zeros(height, width, dtype=torch.float64)
        for k in range(max(height, width) // 2 + 1):
            for r in range(height):
                for c in range(width):
                    if abs(r - height // 2) <= k and abs(c - width // 2) <= k:
                        out[r, c] += 1 / (k + 1) ** 2
        return out / out.norm() if height else out

    top = size // 2
    expected = torch.cat([half(top, size), -half(size - top, size)])
    torch.testing.assert_close(bump(size), expected / expected.norm())
    assert float(bump(size).norm()) == pytest.approx(1)


# --- moves ---------------------------------------------------------------------------------------


def test_linf_pixels_are_at_the_ends_of_their_intervals() -> None:
    net = make_net()
    x, y = pictures(net)
    adv = attack("square50", eps=0.05)(net, x, y, seed=0)
    moved = (adv != x).flatten(1).any(1)
    assert bool(moved.all())
    torch.testing.assert_close((adv - x).abs(), torch.full_like(x, 0.05), rtol=0, atol=1e-6)


def test_l2_changes_have_the_length_of_the_radius() -> None:
    net = make_net()
    x, y = pictures(net)
    for steps in (1, 40):  # the start, and after moves
        adv = attack(f"square{steps}", eps=0.2, norm="l2")(net, x, y, seed=0)
        length = (adv - x).flatten(1).norm(dim=1)
        torch.testing.assert_close(length, torch.full_like(length, 0.2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_are_better_for_every_picture(norm: Any) -> None:
    """With a seed the longer walk goes on from the shorter one and never takes a worse picture."""
    net = make_net()
    x, y = pictures(net)
    eps = 0.02 if norm == "linf" else 0.2

    def lead(steps: int) -> Tensor:
        with torch.no_grad():
            logits = net(attack(f"square{steps}", eps=eps, norm=norm)(net, x, y, seed=2))
        own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
        return own - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)

    leads = [lead(steps) for steps in (1, 10, 70, 200)]
    for fewer, more in pairwise(leads):
        assert bool((more <= fewer + 1e-5).all())
    assert float(leads[-1].mean()) < float(leads[0].mean())


class Steps(nn.Module):
    """A network without a gradient, that counts its pictures."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return (50 * self.net(x.detach())).round()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_gradient_and_one_query_for_each_square(norm: Any) -> None:
    net = Steps(make_net())
    x, y = pictures(net)
    eps = 0.1 if norm == "linf" else 1.5
    net.seen = 0
    adv = attack("square60", eps=eps, norm=norm)(net, x, y, seed=0)
    assert net.seen <= 62 * len(x)  # clean, start, 60 squares
    broken = int((net(adv).argmax(1) != y).sum())
    assert broken >= 10
    # Pictures leave when they are broken.
    net.seen = 0
    attack("square60", eps=10 * eps if norm == "l2" else 1.0, norm=norm)(net, x, y, seed=0)
    assert net.seen < 62 * len(x) / 2


def test_rivals_of_a_linear_network_are_found() -> None:
    """With many steps the walk comes near the optimum of a linear network, which is known."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    x = 0.3 + 0.4 * torch.rand(40, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        logits = net(x)
    y = logits.argmax(1)
    w = (net[1].weight[0] - net[1].weight[1]).detach()
    radius = (logits[:, 0] - logits[:, 1]).abs() / w.abs().sum()
    eps = float(radius.quantile(0.5))
    adv = attack("square800", eps=eps, rescale=True)(net, x, y, seed=0)
    broken = net(adv).argmax(1) != y
    assert not bool((broken & (radius > eps * (1 + 1e-9))).any())
    assert bool(broken[radius < 0.8 * eps].all())


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (1, 4, 9), (3, 11, 6)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_any_shape(shape: tuple[int, ...], norm: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    x = torch.rand(4, *shape)
    y = net(x).argmax(1).detach()
    made = attack("square30", eps=0.1, norm=norm)
    assert made(net, x, y, seed=0).shape == x.shape
    assert made(net, x, y).shape == x.shape


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"steps": 0}, "steps"), ({"restarts": 0}, "restarts"), ({"share": 0.0}, "share")],
)
def test_bad_settings(settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack("square", **settings)


def test_names() -> None:
    assert attack("square").key == "square@8/255"
    assert attack("square1000", restarts=2).label == "square1000x2"
