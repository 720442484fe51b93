"""FGSM with a random start: the step, and the guard against collapse."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from nni_robust.data import DataSplits, ImageSet
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack, TrainingCollapsed, train
from nni_robust.training._collapse import collapsed, count_right
from nni_robust.training.losses import Madry, build_loss

EPS = 0.1
THREAT = ThreatModel(eps=EPS)
FAST = TrainAttack(steps=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def test_one_step_of_one_and_a_quarter_from_a_random_start() -> None:
    """On a linear network the step is (almost) the same wherever it starts."""
    model, y = network(), torch.arange(16) % 4
    x = torch.full((16, 3, 8, 8), 0.5)
    found = build_loss(Recipe(loss="fast", attack=FAST), THREAT).perturb(model, x, y, seed=2)
    change = (found - x).flatten(1) / EPS
    assert change.abs().max() <= 1 + 1e-6
    # Start in [-1, 1], plus or minus 1.25, cut at 1: at the bound unless the start was opposite,
    # below -0.25, which is so with probability 3/8.
    signs = change.sign()
    inside = change.abs() < 1 - 1e-5
    assert inside.float().mean().item() == pytest.approx(3 / 8, abs=0.02)
    assert change[inside].abs().min() < 0.28  # 1.25 - 1 is the least that is left
    assert (change.abs() > 0.25 - 1e-5).all()
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), y).backward()
    assert leaf.grad is not None
    assert (signs == leaf.grad.flatten(1).sign()).float().mean() > 0.98  # softmax moves a little


def test_a_step_can_be_set() -> None:
    made = build_loss(Recipe(loss="fast", attack=TrainAttack(steps=1, step_size=0.05)), THREAT)
    assert isinstance(made, Madry)
    assert made.settings["step_size"] == 0.05


@pytest.mark.parametrize(
    ("one_step", "many", "classes", "is_collapsed"),
    [
        (0.9, 0.0, 10, True),
        (0.45, 0.05, 10, True),
        (0.9, 0.12, 10, False),
        (0.3, 0.0, 10, False),  # weak, but it did not learn the step either
        (0.4, 0.0, 100, True),
        (0.6, 0.3, 2, False),
        (0.9, 0.3, 2, True),
    ],
)
def test_what_a_collapse_is(one_step: float, many: float, classes: int, is_collapsed: bool) -> None:
    assert collapsed(one_step, many, classes) == is_collapsed


class Masked(nn.Module):
    """Classifies by the mean brightness, with gradients that point the wrong way at a full step.

    A network with a bump: one step of 1.25 eps lands behind it, PGD stops on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bump = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        change = (x - 0.5).flatten(1).amax(1)  # the largest change of a grey picture
        wrong = 8 * self.bump * torch.sin(change / EPS * torch.pi)
        zero = torch.zeros_like(wrong)
        return torch.stack([zero + 1, wrong, zero - 9, zero - 9], 1)


def splits() -> DataSplits:
    pixels = torch.full((32, 3, 8, 8), 128, dtype=torch.uint8)
    images = ImageSet(pixels, torch.zeros(32, dtype=torch.int64), "abcd")
    return DataSplits("grey", images, images)


def test_a_network_that_resists_the_one_step_only_is_found_out() -> None:
    model, (x, y) = Masked(), next(splits().train.batches(32))
    loss = build_loss(Recipe(loss="fast", attack=FAST), THREAT)
    one, many, n = count_right(model, loss, THREAT, x, y, seed=0).tolist()
    assert n == 32
    assert collapsed(one / n, many / n, 4)


def test_training_stops_with_a_sentence() -> None:
    recipe = Recipe(
        loss="fast",
        attack=FAST,
        epochs=2,
        batch_size=16,
        lr=1e-9,
        accelerator="cpu",
        validation_attack=None,
    )
    with pytest.raises(TrainingCollapsed, match="training collapsed in epoch 1: accuracy is") as e:
        train(Masked(), splits(), recipe, THREAT)
    again = pickle.loads(pickle.dumps(e.value))
    assert str(again) == str(e.value)
    assert again.many_steps == e.value.many_steps < 0.25
    # The same network passes where it is not the one step that is trained with.
    train(Masked(), splits(), Recipe(**{**vars(recipe), "loss": "madry"}), THREAT)
