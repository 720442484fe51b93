"""The margin of Carlini and Wagner as a loss, and PGD on it, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.attacks._losses import LOSSES


def test_the_loss_is_minus_the_lead_of_the_label() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.5], [3.0, -1.0, 3.0], [0.0, 0.0, -2.0]])
    loss = LOSSES["margin"](logits, torch.tensor([1, 0, 2]))
    assert loss.tolist() == [-1.5, 0.0, 2.0]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def test_steps_go_from_the_label_to_its_rival() -> None:
    """On a linear network: eps times the sign of the difference of two rows of weights."""
    model, x, y = Linear(), torch.full((3, 3, 2, 2), 0.5), torch.tensor([0, 1, 2])
    adv = attack("cw1", eps=0.01, step_size=0.01, random_start=False)(model, x, y)
    logits = model(x).detach()
    for i in range(3):
        others = logits[i].clone()
        others[y[i]] = -torch.inf
        rival = int(others.argmax())
        ways = (model.weight[rival] - model.weight[y[i]]).detach().sign()
        torch.testing.assert_close(adv[i].flatten(), 0.5 + 0.01 * ways)


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("cw40", {}, "cw40@8/255"),
        ("cw", {"loss": "dlr", "steps": 7}, "cw7-dlr@8/255"),
        ("pgd5", {"loss": "margin"}, "pgd5-margin@8/255"),
    ],
)
def test_names(name: str, settings: dict[str, object], key: str) -> None:
    assert attack(name, **settings).key == key


def test_it_is_pgd_with_another_loss() -> None:
    model = Linear()
    x, y = torch.rand(5, 3, 2, 2), torch.arange(5) % 4
    ours = attack("cw7")(model, x, y, seed=3)
    assert torch.equal(ours, attack("pgd7", loss="margin")(model, x, y, seed=3))
    assert not torch.equal(ours, attack("pgd7")(model, x, y, seed=3))
