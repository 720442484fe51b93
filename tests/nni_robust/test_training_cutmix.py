"""CutMix: boxes and shares, the loss against mixed labels, metrics without them, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.data import DataSplits, ImageSet
from nni_robust.data.augment import check_augment
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack, train
from nni_robust.training._state import RunningSums
from nni_robust.training.cutmix import cutmix, draw_box
from nni_robust.training.losses import build_loss

THREAT = ThreatModel(eps=0.1)


def splits(classes: int = 7) -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (56, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(56) % classes, list("abcdefghi")[:classes], ("flip",))
    return DataSplits("toy", images.take(torch.arange(48)), images.take(torch.arange(48, 56)))


def network(classes: int = 7) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, classes)
    )


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 16,
        "lr": 0.02,
        "augment": ("flip", "cutmix"),
        "attack": TrainAttack(steps=1),
        "validation_attack": None,
        "accelerator": "cpu",
    }
    return Recipe(**{**settings, **changes})


@pytest.mark.parametrize("classes", [2, 7, 200])
def test_labels_are_the_shares_of_the_pixels(classes: int) -> None:
    """Pictures are painted with their number, so each pixel tells whose it is."""
    n = 12
    y = torch.arange(n) * 5 % classes
    x = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, 8, 6).contiguous()
    kept = x.clone()
    boxes = set()
    for seed in range(30):
        mixed, labels = cutmix(x, y, classes, seed)
        assert torch.equal(x, kept)
        assert labels.shape == (n, classes)
        assert torch.allclose(labels.sum(1), torch.ones(n))
        for i in range(n):
            owners = mixed[i, 0].flatten().long()
            expected = F.one_hot(y[owners], classes).float().mean(0)
            assert torch.allclose(labels[i], expected, atol=1e-6)
            assert torch.equal(mixed[i, 0], mixed[i, 2])
        foreign = (mixed != x).any(1)
        boxes.add(tuple(foreign.any(0).nonzero().flatten().tolist()))
    assert len(boxes) > 15


def test_boxes_have_a_uniform_area_before_they_are_cut() -> None:
    numbers = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(4000):
        top, bottom, left, right = draw_box(64, 64, numbers)
        assert 0 <= top <= bottom <= 64
        assert 0 <= left <= right <= 64
        areas.append((bottom - top) * (right - left) / 64**2)
    # A side s at a uniform place keeps s - s^2/4 of itself on average; the area is s^2 uniform:
    # E[(s - s^2/4)^2] = E[u] - E[u^1.5]/2 + E[u^2]/16.
    assert sum(areas) / 4000 == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


def test_probability() -> None:
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    mixed = [cutmix(x, y, 4, seed, probability=0.3)[1].dim() == 2 for seed in range(2000)]
    assert sum(mixed) / 2000 == pytest.approx(0.3, abs=0.03)
    assert cutmix(x, y, 4, 0, probability=0)[0] is x


def test_devices_share_the_box_but_not_the_pairs() -> None:
    x, y = torch.rand(16, 3, 8, 8), torch.arange(16)
    for seed in range(9):
        a, b = (cutmix(x, y, 16, seed, rank=rank) for rank in (0, 1))
        box = [(m != x).flatten(2).any(0).any(0) for m, _ in (a, b)]
        assert torch.equal(*box) or not (box[0].any() and box[1].any())


@pytest.mark.parametrize("name", ["clean", "madry", "trades"])
def test_losses_against_mixed_labels(name: str) -> None:
    student = network(5).eval()
    random = torch.Generator().manual_seed(1)
    x, shares = torch.rand(6, 3, 8, 8, generator=random), torch.rand(6, 5, generator=random)
    shares = shares / shares.sum(1, keepdim=True)
    objective = build_loss(recipe(loss=name, beta=0.0), THREAT)
    x_adv = objective.perturb(student, x, shares, seed=0)
    loss, _ = objective(lambda *b: tuple(map(student, b)), x, x_adv, shares)
    logs = student(x if name == "trades" else x_adv).log_softmax(1)
    assert loss.item() == pytest.approx(-(shares * logs).sum(1).mean().item(), rel=1e-5)


def test_madry_attacks_the_mixed_label() -> None:
    student = network(5).eval()
    random = torch.Generator().manual_seed(1)
    x, shares = torch.rand(6, 3, 8, 8, generator=random), torch.rand(6, 5, generator=random)
    shares = shares / shares.sum(1, keepdim=True)
    attack = TrainAttack(steps=1, step_size=0.1, random_start=False)
    found = build_loss(recipe(attack=attack), THREAT).perturb(student, x, shares, seed=0)
    leaf = x.clone().requires_grad_()
    (-(shares * student(leaf).log_softmax(1)).sum()).backward()
    assert leaf.grad is not None
    assert torch.allclose(found, (x + 0.1 * leaf.grad.sign()).clamp(0, 1), atol=1e-6)


def test_mixed_pictures_do_not_count_as_right_or_wrong() -> None:
    class Alone:
        def all_reduce(self, value: Tensor, reduce_op: str) -> Tensor:
            return value

    sums = RunningSums(torch.device("cpu"))
    right = F.one_hot(torch.tensor([0, 1]), 3).float()
    sums.add(0, torch.tensor(2.0), right, torch.tensor([[0.5, 0.5, 0], [0, 0.5, 0.5]]))
    assert sums.means(Alone()) == (2.0, None)
    sums.add(1, torch.tensor(1.0), right, torch.tensor([0, 2]))
    assert sums.means(Alone()) == (1.5, 0.5)


@pytest.mark.parametrize("name", ["clean", "madry", "trades"])
def test_training_on_mixed_pictures(name: str) -> None:
    # The network has two outputs more than there are classes.
    result = train(network(9), splits(), recipe(loss=name, cutmix_probability=1), THREAT)
    assert [r.train_robust for r in result.history] == [None, None]
    some = train(network(), splits(), recipe(loss=name, cutmix_probability=0.5), THREAT)
    assert any(r.train_robust is not None for r in some.history)


def test_it_is_what_the_probability_says() -> None:
    """At 0 the training is that without it, bit for bit; at 1 it is another one."""
    ends = [
        train(network(), splits(), recipe(augment=augment, cutmix_probability=p), THREAT).model
        for augment, p in ((("flip",), 0.5), (("flip", "cutmix"), 0), (("flip", "cutmix"), 1))
    ]
    plain, never, always = (end.state_dict() for end in ends)
    assert all(torch.equal(plain[k], never[k]) for k in plain)
    assert not torch.equal(plain["3.weight"], always["3.weight"])


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    made = recipe(epochs=3, checkpoint_steps=2)
    whole = train(network(), splits(), made, THREAT)

    class Stop(Exception):
        pass

    class Breaks:
        """A hook that breaks the training in the middle of the second epoch."""

        left = 5

        def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
            self.left -= 1
            if self.left < 0:
                raise Stop

    with pytest.raises(Stop):
        train(network(), splits(), made, THREAT, folder=tmp_path, hook=Breaks())
    resumed = train(network(), splits(), made, THREAT, folder=tmp_path)
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [r.loss for r in whole.history] == [r.loss for r in resumed.history]


def test_only_trainings_mix() -> None:
    with pytest.raises(UserError, match="'cutmix' is not allowed"):
        check_augment(["flip", "cutmix"])
    with pytest.raises(UserError, match="'cutmix' is not allowed"):
        splits().train.batches(8, augment=["cutmix"])
    with pytest.raises(UserError, match=r"cutmix_probability: 1\.5 is not allowed"):
        recipe(cutmix_probability=1.5)
