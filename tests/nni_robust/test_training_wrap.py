"""What wraps a training's loss: when it is called, what it sees, what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.data import DataSplits, ImageSet
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, RobustLoss, TrainAttack, train
from nni_robust.training._setup import leaves_unused

THREAT = ThreatModel(eps=0.1)


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(48) % 4, "abcd")
    return DataSplits("toy", images.take(torch.arange(32)), images.take(torch.arange(32, 48)))


class Net(nn.Module):
    """A small network, one of whose layers is never called."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 4)
        if unused:
            self.bn1 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))
        return out


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 16,
        "lr": 0.02,
        "attack": TrainAttack(steps=1),
        "validation_attack": None,
        "accelerator": "cpu",
    }
    return Recipe(**{**settings, **changes})


class Shrink:
    """Adds `weight` times the squared norm of all weights; notes what it was given."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.given: list[tuple[RobustLoss, nn.Module, nn.Module | None]] = []

    def settings(self) -> dict[str, Any]:
        return {"weight": self.weight, "shape": (1, 2)}

    def __call__(self, loss: RobustLoss, model: nn.Module, teacher: nn.Module | None) -> RobustLoss:
        self.given.append((loss, model, teacher))
        return Shrunk(loss, model, self.weight)


class Shrunk:
    def __init__(self, loss: RobustLoss, model: nn.Module, weight: float) -> None:
        self.loss, self.model, self.weight = loss, model, weight

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return self.loss.perturb(model, x, y, seed)

    def __call__(self, forward: Any, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = self.loss(forward, x, x_adv, y)
        return loss + self.weight * sum((p**2).sum() for p in self.model.parameters()) / 2, logits

    def replay(self, x: Tensor, x_adv: Tensor, done: int) -> Tensor | None:
        return self.loss.replay(x, x_adv, done)


@pytest.mark.parametrize("clean_epochs", [0, 1])
def test_a_penalty_on_the_weights_is_weight_decay(clean_epochs: int) -> None:
    """The same training by the optimizer's own setting, also in the clean epochs."""
    wrap = Shrink(0.01)
    made = recipe(weight_decay=0.0, clean_epochs=clean_epochs)
    ours = train(Net(), splits(), made, THREAT, wrap=wrap).model.state_dict()
    decayed = recipe(weight_decay=0.01, clean_epochs=clean_epochs)
    theirs = train(Net(), splits(), decayed, THREAT).model.state_dict()
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-5) for k in ours)
    assert len(wrap.given) == 1 + clean_epochs


def test_what_it_is_given() -> None:
    wrap, model, teacher = Shrink(0.0), Net(), Net()
    train(model, splits(), recipe(epochs=1), THREAT, wrap=wrap, teacher=teacher)
    assert wrap.given[0][1] is model
    assert wrap.given[0][2] is teacher


def test_a_weight_of_nothing_changes_nothing() -> None:
    with_it = train(Net(), splits(), recipe(), THREAT, wrap=Shrink(0.0)).model.state_dict()
    without = train(Net(), splits(), recipe(), THREAT).model.state_dict()
    assert all(torch.equal(with_it[k], without[k]) for k in without)


def test_its_settings_are_part_of_the_training(tmp_path: Path) -> None:
    for _ in range(2):  # the second time from the folder
        result = train(Net(), splits(), recipe(), THREAT, folder=tmp_path, wrap=Shrink(0.1))
        assert len(result.history) == 2
    with pytest.raises(UserError, match=r"wrap\.weight was 0\.1, now it is 0\.2"):
        train(Net(), splits(), recipe(), THREAT, folder=tmp_path, wrap=Shrink(0.2))
    with pytest.raises(UserError, match="holds another training"):
        train(Net(), splits(), recipe(), THREAT, folder=tmp_path)


def test_replays_are_refused() -> None:
    with pytest.raises(UserError, match="replays: 2 is not allowed with Shrink"):
        train(Net(), splits(), recipe(replays=2), THREAT, wrap=Shrink(0.1))


@pytest.mark.parametrize("unused", [False, True])
def test_weights_that_are_never_used_are_seen(unused: bool) -> None:
    model = Net(unused).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert leaves_unused(model, splits()) == unused
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.slow
def test_two_devices_train_a_network_with_a_layer_that_is_never_called() -> None:
    made = recipe(devices=2, strategy="ddp_fork", loss="trades")
    result = train(Net(True), splits(), made, THREAT)
    assert len(result.history) == 2
    assert torch.equal(result.model.bn1.weight, torch.ones(4))
