"""FAB-T: its projection against scipy's optimisers, its results against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.attacks.fab import project_onto_hyperplane
from nni_robust.errors import UserError
from nni_robust.spectrum import count_passes


def cases(n: int = 12, d: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Points with entries at the ends, normals with zeros, gaps that the box allows or does not."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(n, d, generator=generator, dtype=torch.float64)
    points[::3, 0], points[1::3, 1] = 0.0, 1.0
    w = torch.randn(n, d, generator=generator, dtype=torch.float64)
    w[::2, 2], w[3] = 0.0, w[3].abs() * 1e-6
    most = torch.where(w > 0, w * (1 - points), -w * points).sum(1)
    least = torch.where(w > 0, -w * points, w * (1 - points)).sum(1)
    part = torch.linspace(0.02, 0.98, n, dtype=torch.float64)
    return points, w, torch.where(torch.arange(n) % 2 == 0, part * most, part * least)


def test_linf_projection_is_the_linear_programme() -> None:
    points, w, gap = cases()
    change = project_onto_hyperplane(points, w, gap, "linf")
    for p, v, g, d in zip(points.numpy(), w.numpy(), gap.numpy(), change, strict=True):
        n = len(p)
        # Variables: the change and its largest entry t; minimise t.
        above = np.vstack([np.hstack([s * np.eye(n), -np.ones((n, 1))]) for s in (1, -1)])
        found = linprog(
            np.r_[np.zeros(n), 1.0],
            A_ub=above,
            b_ub=np.zeros(2 * n),
            A_eq=np.r_[v, 0.0][None] / np.abs(v).max(),
            b_eq=[g / np.abs(v).max()],
            bounds=[*zip(-p, 1 - p, strict=True), (0, None)],
        )
        assert found.status == 0
        assert float(d.abs().max()) == pytest.approx(found.fun, rel=1e-6, abs=1e-9)


def test_l2_projection_is_the_quadratic_programme() -> None:
    points, w, gap = cases()
    change = project_onto_hyperplane(points, w, gap, "l2")
    for p, v, g, d in zip(points.numpy(), w.numpy(), gap.numpy(), change.numpy(), strict=True):
        scale = np.abs(v).max()
        found = minimize(
            lambda z: z @ z,
            np.zeros_like(p),
            jac=lambda z: 2 * z,
            bounds=list(zip(-p, 1 - p, strict=True)),
            constraints={"type": "eq", "fun": lambda z, v=v, g=g, s=scale: (v @ z - g) / s},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        assert found.success
        np.testing.assert_allclose(d, found.x, atol=2e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_closes_the_gap_inside_the_box(norm: Any) -> None:
    points, w, gap = cases(40, 30)
    change = project_onto_hyperplane(points, w, gap, norm)
    torch.testing.assert_close((w * change).sum(1), gap, rtol=1e-9, atol=1e-12)
    moved = points + change
    assert float(moved.min()) >= -1e-12
    assert float(moved.max()) <= 1 + 1e-12
    assert bool((change[w == 0] == 0).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_does_not_depend_on_the_scale(norm: Any) -> None:
    """Down to gradients whose squares are no float32 numbers."""
    points, w, gap = (t.float() for t in cases())
    expected = project_onto_hyperplane(points, w, gap, norm)
    small = project_onto_hyperplane(points, w * 1e-30, gap * 1e-30, norm)
    torch.testing.assert_close(small[:3], expected[:3], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_goes_as_far_as_the_box_allows(norm: Any) -> None:
    points, w, gap = cases()
    moved = points + project_onto_hyperplane(points, w, 1e6 * gap, norm)
    corner = (torch.sign(w * gap.unsqueeze(1)) > 0).double()
    torch.testing.assert_close(moved, torch.where(w == 0, points, corner))
    none = project_onto_hyperplane(points, w, 0 * gap, norm)
    assert torch.equal(none, torch.zeros_like(points))
    flat = project_onto_hyperplane(points, 0 * w, gap, norm)
    assert torch.equal(flat, torch.zeros_like(points))


def linear(norm: str) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A linear network, pictures, labels, and how far each picture is from another class."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).double()
    x = 0.3 + 0.4 * torch.rand(60, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        logits = net(x)
    y, w = logits.argmax(1), net[1].weight.detach()
    lead = logits.gather(1, y.unsqueeze(1)) - logits
    size = (w[y].unsqueeze(1) - w.unsqueeze(0)).norm(p=1 if norm == "linf" else 2, dim=2)
    return net, x, y, torch.where(size > 0, lead / size, torch.inf).amin(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_network_in_closed_form(norm: Any) -> None:
    net, x, y, radius = linear(norm)
    eps = float(radius.quantile(0.5))
    broken = net(attack("fab-t20", eps=eps, norm=norm)(net, x, y)).argmax(1) != y
    assert not bool((broken & (radius > eps)).any())
    # The first step is the projection, made longer by a twentieth; later ones make it shorter.
    assert bool(broken[radius < 0.99 * eps].all())


def test_nothing_found_is_the_clean_picture_and_success_stops() -> None:
    net, x, y, radius = linear("linf")
    made = attack("fab-t5", eps=float(radius.min()) / 2, targets=2)
    assert torch.equal(made(net, x, y), x)
    with count_passes(net) as few:
        adv = attack("fab-t50", eps=0.5)(net, x, y)
    assert bool((net(adv).argmax(1) != y).all())
    assert few.backward <= 4 * len(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_torchattacks(norm: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 5))
    x = torch.rand(40, 3, 4, 4)
    with torch.no_grad():  # centred logits: all classes occur
        net[-1].bias -= net(x).mean(0)
    y = net(x).argmax(1).detach()
    eps = 0.06 if norm == "linf" else 0.3
    theirs = torchattacks.FAB(
        net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=20, multi_targeted=True,
        n_classes=5, n_restarts=1,
    )  # fmt: skip
    other = net(theirs(x, y)).argmax(1) != y
    ours = net(attack("fab-t20", eps=eps, norm=norm)(net, x, y)).argmax(1) != y
    assert 5 < int(ours.sum()) < 38
    assert int((ours != other).sum()) <= 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps"),
        ({"targets": 0}, "targets"),
        ({"overshoot": 0.9}, "overshoot"),
        ({"pull": 1.1}, "pull"),
        ({"shrink": 1.0}, "shrink"),
    ],
)
def test_bad_settings(settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack("fab-t", **settings)


def test_names() -> None:
    assert attack("fab-t", norm="l2", eps=0.5).key == "fab-t-l2@0.5"
    assert attack("fab-t20", restarts=3, targets=4).label == "fab-t20x3-4targets"
