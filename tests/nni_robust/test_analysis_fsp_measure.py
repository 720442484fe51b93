"""FSP distances and accuracies of a network over whole batches, against one plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_robust.analysis import fsp_record
from nni_robust.data import ImageSet
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe
from nni_robust.training.recipe import TrainAttack

RECIPE = Recipe(attack=TrainAttack(steps=1, random_start=False, step_size=0.1))
THREAT = ThreatModel(eps=0.1)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, before: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(last)) + before


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cells = nn.ModuleList([Cell(), Cell()])
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.cells[0](x, x)
        return self.head(self.cells[1](x, a).mean((2, 3)))


def pictures(n: int = 7) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return ImageSet(values, torch.arange(n) % 2, ("a", "b"))


def test_one_signed_step_by_hand() -> None:
    """Batches of unequal size count picture by picture; attack and matrices written out."""
    network, images = Network(), pictures()
    found = fsp_record(network, images, RECIPE, THREAT, pictures=5, batch_size=2)
    x, y = next(images.head(5).batches(5))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), y), x)
    attacked = (x + 0.1 * gradient.sign()).clamp(0, 1)

    def maps(x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        a = network.cells[0](x, x)
        b = network.cells[1](x, a)
        grams = [torch.einsum("nihw,nohw->nio", i, o) / 16 for i, o in ((x, a), (a, b))]
        return grams, network(x)

    with torch.no_grad():
        (before, clean), (after, robust) = maps(x), maps(attacked)
    expected = [float((p - q).square().mean()) for p, q in zip(before, after, strict=True)]
    assert found["distance"] == pytest.approx(expected, rel=1e-4)
    assert found["clean"] == pytest.approx(float((clean.argmax(1) == y).float().mean()))
    assert found["robust"] == pytest.approx(float((robust.argmax(1) == y).float().mean()))
    assert found["pictures"] == 5


def test_leaves_the_network_alone_and_refuses_nonsense() -> None:
    network = Network().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    fsp_record(network, pictures(), RECIPE, THREAT)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    with pytest.raises(UserError, match="pictures: 0"):
        fsp_record(network, pictures(), RECIPE, THREAT, pictures=0)
    with pytest.raises(UserError, match="no list of modules 'cells'"):
        fsp_record(nn.Linear(2, 2), pictures(), RECIPE, THREAT)
