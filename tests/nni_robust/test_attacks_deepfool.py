"""DeepFool in both norms: against torchattacks, and against distances that are known exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bent(classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 64, classes)
    ).eval()


def labelled(model: nn.Module, n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 3, 8, 8)
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_l2_is_torchattacks_moved_into_the_ball(steps: int) -> None:
    model = bent()
    x, y = labelled(model)
    own = torchattacks.DeepFool(model, steps=steps)(x, y)
    ours = attack("deepfool", steps=steps, eps=100, norm="l2")(model, x, y)
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-5)
    eps = 0.5 * float((own - x).flatten(1).norm(dim=1).min())
    assert eps > 0
    bounded = attack("deepfool", steps=steps, eps=eps, norm="l2")(model, x, y)
    expected = x + eps * (own - x) / (own - x).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(bounded, expected.clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_network_is_crossed_by_the_smallest_change(norm: Any, dual: int) -> None:
    """The distance to a hyperplane is the lead over the dual norm of its normal vector."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    x = 0.5 + 0.01 * torch.rand(8, 3, 8, 8).double()  # far from the box
    logits = model(x).detach()
    y, weight = logits.argmax(1), model[1].weight.detach()
    least = torch.stack(
        [
            torch.stack(
                [
                    (logits[i, y[i]] - logits[i, k]) / (weight[k] - weight[y[i]]).norm(dual)
                    for k in range(5)
                    if k != y[i]
                ]
            ).min()
            for i in range(8)
        ]
    )
    found = attack("deepfool", eps=1.0 if norm == "linf" else 10.0, norm=norm)(model, x, y)
    change = (found - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    torch.testing.assert_close(size, 1.02 * least, rtol=1e-6, atol=0)
    assert (model(found).argmax(1) != y).all()


def test_linf_breaks_what_l2_moved_into_the_ball_does_not(robust: nn.Module, digits: Any) -> None:
    """DeepFool of the ball's own norm is an attack there; that of L2, cut to it, is hardly one."""
    eps, n = 0.1, 48
    x, y = (part[:n] for part in digits)
    threat: Any = {"norm": "linf", "eps": eps}
    found = evaluate(robust, (x, y), ["deepfool", "pgd20"], threat=threat)
    ours, pgd = (int(one.correct.sum()) for one in found.attacks.values())
    cut = x + (torchattacks.DeepFool(robust)(x, y) - x).clamp(-eps, eps)
    other = int((robust(cut).argmax(1) == y).sum())
    assert found.clean > 0.9
    assert ours < other - 2
    assert ours < pgd + 8


def test_a_flat_network_gives_the_pictures_back() -> None:
    model = bent()
    model[-1].weight.data.zero_()
    x, y = labelled(model)
    for norm in ("linf", "l2"):
        found = attack("deepfool", norm=norm)(model, x, y)  # type: ignore[arg-type]
        assert torch.equal(found, x)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "deepfool.steps: 0 is not allowed"),
        ({"steps": "3"}, "deepfool.steps: '3' is not allowed"),
        ({"overshoot": -1}, "deepfool.overshoot: -1 is not allowed"),
    ],
)
def test_bad_settings(settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack("deepfool", **settings)


def test_names() -> None:
    assert [attack(name).label for name in ("deepfool", "deepfool3")] == ["deepfool", "deepfool3"]
