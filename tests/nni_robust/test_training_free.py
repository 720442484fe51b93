"""Free adversarial training and clean first epochs: written out, in closed form, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import ball_around
from nni_robust.data import DataSplits, ImageSet, derive_seed
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack, TrainResult, train
from nni_robust.training.free import Free
from nni_robust.training.losses import build_loss

EPS = 0.1
THREAT = ThreatModel(eps=EPS)
LINF, L2 = THREAT, ThreatModel(norm="l2", eps=0.7)
ONE_STEP = TrainAttack(steps=1)


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(64) % 4, "abcd", ("crop", "flip"))
    return DataSplits("toy", images.take(torch.arange(48)), images.take(torch.arange(48, 64)))


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(512, 4),
    )


def recipe(**changes: Any) -> Recipe:
    settings = {
        "epochs": 2,
        "batch_size": 16,
        "schedule": "constant",
        "replays": 3,
        "attack": ONE_STEP,
        "validation_attack": None,
        "channels_last": False,
        "accelerator": "cpu",
    }
    return Recipe(**{**settings, **changes})


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@pytest.mark.parametrize("random_start", [True, False])
def test_equals_the_algorithm_written_out(random_start: bool) -> None:
    attack = TrainAttack(steps=1, step_size=0.04, random_start=random_start)
    ours = train(network(), splits(), recipe(attack=attack), THREAT, seed=7, validate=False)

    model = network().train()
    sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    for epoch in range(2):
        batches = splits().train.batches(
            16, shuffle=True, seed=derive_seed(7, "data"), epoch=epoch, augment=("crop", "flip")
        )
        for number, (x, y) in enumerate(batches):
            torch.manual_seed(derive_seed(7, "layers", epoch, number, 0))
            x_adv = x.clone()
            if random_start:
                noise = Noise(derive_seed(7, "attack", epoch, number, 0), torch.arange(16))
                x_adv = ball_around(x, THREAT).random_start(noise, 0)
            for _ in range(3):
                x_adv.requires_grad_()
                sgd.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(x_adv), y))
                sgd.step()
                assert x_adv.grad is not None
                moved = x_adv.detach() + 0.04 * x_adv.grad.sign()
                x_adv = torch.clamp(torch.max(torch.min(moved, x + EPS), x - EPS), 0, 1)
    assert ours.model.training is False
    for name, tensor in model.state_dict().items():
        assert torch.allclose(ours.model.state_dict()[name], tensor, atol=1e-5)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_linear_network_in_closed_form(threat: ThreatModel) -> None:
    """The gradient of two classes' cross entropy has the direction of the weights' difference."""
    linear = nn.Linear(12, 2, bias=False)
    x, y = torch.full((5, 3, 2, 2), 0.5), torch.zeros(5, dtype=torch.int64)
    objective = Free(threat, replays=2, random_start=False)

    def forward(*batches: Tensor) -> tuple[Tensor, ...]:
        return tuple(linear(b.flatten(1)) for b in batches)

    start = objective.perturb(linear, x, y, seed=0)
    assert torch.equal(start, x)
    loss, _ = objective(forward, x, start, y)
    torch.autograd.backward(loss)
    moved = objective.replay(x, start, 1)
    assert moved is not None
    uphill = (linear.weight[1] - linear.weight[0]).detach().view(1, 3, 2, 2)
    unit = uphill.sign() if threat.norm == "linf" else uphill / uphill.norm()
    expected = (x + threat.eps * unit).clamp(0, 1)
    if threat.norm == "l2":
        assert 0 < expected.min() < expected.max() < 1
    assert torch.allclose(moved, expected, atol=1e-5)
    assert moved.requires_grad
    assert objective.replay(x, moved, 2) is None


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_starts_are_random_inside_the_ball_and_follow_the_seed(threat: ThreatModel) -> None:
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
    objective = build_loss(recipe(), threat)
    a, b, c = (objective.perturb(network(), x, y, seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    change = (a - x).detach().flatten(1).double()
    size = change.abs().amax(1) if threat.norm == "linf" else change.norm(dim=1)
    assert ((size > 0.5 * threat.eps) & (size <= threat.eps * (1 + 1e-5))).all()
    assert 0 <= a.min() <= a.max() <= 1


def test_clean_epochs_are_those_of_clean_training() -> None:
    def states(**changes: Any) -> list[dict[str, Tensor]]:
        model, found = network(), []

        def on_epoch(record: object) -> None:
            found.append({n: t.clone() for n, t in model.state_dict().items()})

        settings = recipe(epochs=3, **changes)
        train(model, splits(), settings, THREAT, seed=1, on_epoch=on_epoch, validate=False)
        return found

    clean = states(loss="clean", replays=1)
    warm = states(clean_epochs=2)
    madry = states(clean_epochs=2, replays=1)
    for epoch in (0, 1):
        for name, tensor in clean[epoch].items():
            assert torch.equal(warm[epoch][name], tensor)
            assert torch.equal(madry[epoch][name], tensor)
    third = [s[2]["0.weight"] for s in (clean, warm, madry)]
    assert not torch.equal(third[0], third[1])
    assert not torch.equal(third[0], third[2])
    # A replayed batch counts its steps: 3 batches, 3 steps each in the third epoch only.
    assert int(warm[2]["1.num_batches_tracked"]) == 3 + 3 + 9


class StopAt:
    """Interrupts before a batch."""

    def __init__(self, batch: int | None) -> None:
        self.left = batch

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [2, 4, 8])
def test_interrupted_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    def run(folder: Path | None, stop: int | None) -> TrainResult:
        settings = recipe(epochs=3, clean_epochs=1, averaging=0.9, checkpoint_steps=1)
        hook = StopAt(stop)
        return train(network(), splits(), settings, THREAT, seed=5, hook=hook, folder=folder)

    whole = run(None, None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop)
    resumed = run(tmp_path, None)
    assert equal(whole.model, resumed.model)
    assert [r.loss for r in whole.history] == [r.loss for r in resumed.history]
