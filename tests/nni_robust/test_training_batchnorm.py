"""Fresh batch-norm statistics against their definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_robust.attacks import attack
from nni_robust.data import DataSplits, ImageSet, derive_seed
from nni_robust.training import recalibrate_bn


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 6, 6), generator=random, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(40) % 4, "abcd")


class TwoPaths(nn.Module):
    """A supernet of two branches; only one of them computes."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.9)) for _ in "ab"
        )
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.used(x).mean((2, 3)))


def statistics(model):
    return {n: b.clone() for n, b in model.named_buffers()}


def test_statistics_are_the_mean_over_batches(images):
    torch.manual_seed(1)
    model = TwoPaths().train()
    model.used[1].momentum = 0.3
    model.unused[1].running_mean.normal_()
    weights = {n: p.clone() for n, p in model.named_parameters()}
    unused = statistics(model.unused)
    assert recalibrate_bn(model, images, batches=5, batch_size=8) is model

    # 5 batches of 8 are all 40 pictures: the mean of equal batches is the mean over everything.
    features = model.used[0](images.images / 255).detach()
    bn = model.used[1]
    assert torch.allclose(bn.running_mean, features.mean((0, 2, 3)), atol=1e-5)
    within = features.var((0, 2, 3))
    assert torch.allclose(bn.running_var, within, rtol=0.05)
    assert bn.num_batches_tracked == 5
    assert bn.momentum == 0.3
    assert all(m.training for m in model.modules())
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert all(torch.equal(b, unused[n]) for n, b in model.unused.named_buffers())


def test_variance_is_the_mean_of_unbiased_batch_variances(images):
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    recalibrate_bn(model, images, batches=3, batch_size=7, seed=4)
    assert not model[0].training
    stream = list(images.batches(7, shuffle=True, seed=derive_seed(4, "bn")))[:3]
    expected = torch.stack([x.var((0, 2, 3)) for x, _ in stream]).mean(0)
    assert torch.allclose(model[0].running_var, expected, atol=1e-6)


def test_data_splits_mean_their_training_pictures(images):
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    recalibrate_bn(first, images)
    recalibrate_bn(second, DataSplits("x", images, images.head(1)))
    assert torch.equal(first.running_mean, second.running_mean)


def test_attacked_pictures_are_made_with_the_old_statistics(images):
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )
    model[1].running_mean.normal_()
    seen = []

    def spy(network, x, y, seed):
        seen.append(network[1].running_mean.clone())
        return attack("pgd", eps=0.3, steps=2)(network, x, y, seed=seed)

    before = model[1].running_mean.clone()
    recalibrate_bn(model, images, batches=3, batch_size=10, threat_attack=spy)
    assert all(torch.equal(mean, before) for mean in seen)
    assert len(seen) == 3
    attacked = model[1].running_mean.clone()
    recalibrate_bn(model, images, batches=3, batch_size=10)
    assert not torch.allclose(attacked, model[1].running_mean, atol=1e-3)


def test_a_network_without_batch_norm_is_left_alone(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4))
    before = {n: p.clone() for n, p in model.named_parameters()}
    recalibrate_bn(model, images)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_everything_comes_back_after_an_error(images):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Linear(100, 1)).train()
    model[0].momentum = 0.25
    model[0].running_mean.normal_()
    before = statistics(model)
    with pytest.raises(RuntimeError):
        recalibrate_bn(model, images)
    assert model.training
    assert model[0].momentum == 0.25
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
