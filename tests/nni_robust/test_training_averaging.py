"""Weight averaging against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nni_robust.training._averaging import WeightAverage


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def steps(model, n):
    """Change weights and statistics as training would."""
    random = torch.Generator().manual_seed(1)
    for _ in range(n):
        model(torch.randn(8, 4, generator=random))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=random), alpha=0.1)
        yield


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_average_equals_torchs(decay):
    model = make()
    average = WeightAverage(model, decay)

    def rule(old, new, count):
        # torch calls it from its second update on and counts from 1; ours counts from 1 at the
        # first.
        d = min(decay, (1 + count) / (10 + count))
        return d * old + (1 - d) * new

    theirs = AveragedModel(model, avg_fn=rule, use_buffers=True)
    theirs.update_parameters(model)  # the first only copies
    for _ in steps(model, 30):
        average.update()
        theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    for name, tensor in average.tensors().items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    assert set(average.tensors()) == {n for n, t in expected.items() if t.is_floating_point()}
    assert average.updates == 30


def test_average_of_constant_weights_is_constant():
    model = make()
    average = WeightAverage(model, 0.9)
    for _ in range(20):
        average.update()
    assert all(torch.allclose(t, model.state_dict()[name]) for name, t in average.tensors().items())


def test_applied_is_undone_to_the_bit_also_after_an_error():
    model = make().to(memory_format=torch.channels_last)
    average = WeightAverage(model, 0.9)
    for _ in steps(model, 5):
        average.update()
    own = copy.deepcopy(model.state_dict())

    def inside():
        assert torch.equal(model[0].weight, average.tensors()["0.weight"])
        assert torch.equal(model[1].running_mean, average.tensors()["1.running_mean"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), average.applied():
        inside()
    assert all(torch.equal(t, own[name]) for name, t in model.state_dict().items())
    average.apply()
    assert torch.equal(model[0].weight, average.tensors()["0.weight"])
    assert model[1].num_batches_tracked == 5
