"""FSP matrices and distances against loops, and networks that are left as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_robust.analysis import fsp_distance, fsp_matrix, fsp_taps
from nni_robust.errors import UserError


class Cell(nn.Module):
    def __init__(self, older, newer, out, stride=1):
        super().__init__()
        self.older = nn.Conv2d(older, out, 3, 1, 1)
        self.newer = nn.Conv2d(newer, out, 3, stride, 1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, s0, s1):
        y = self.newer(s1)
        return self.norm(y + F.interpolate(self.older(s0), y.shape[2:])).relu()


class Net(nn.Module):
    """Three cells; the second halves the resolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.cells = nn.ModuleList([Cell(4, 4, 5), Cell(4, 5, 6, 2), Cell(5, 6, 7)])
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(7, 10)

    def maps(self, x):
        s0 = s1 = self.stem(x)
        states = [s1]
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
            states.append(s1)
        return states

    def forward(self, x):
        return self.head(self.dropout(self.maps(x)[-1].mean(dim=(2, 3))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(8, 3, 8, 8))  # batch-norm statistics that differ from a batch's
    return net


@pytest.fixture
def pictures():
    x = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    return x, (x + 0.1 * noise).clamp(0, 1)


def matrix_by_loops(f_in, f_out):
    """Equation 1 of Yim et al. for one picture, one entry at a time."""
    height, width = f_out.shape[1:]
    result = torch.zeros(len(f_in), len(f_out), dtype=torch.float64)
    for i in range(len(f_in)):
        for j in range(len(f_out)):
            for s in range(height):
                for t in range(width):
                    result[i, j] += f_in[i, s, t].double() * f_out[j, s, t].double()
    return result / (height * width)


def distance_by_loops(net, x, x_adv, reduce):
    """Distances of the test network, with its own forward pass instead of hooks."""
    net.eval()
    totals = [0.0] * 3
    with torch.no_grad():
        for k in range(len(x)):
            pairs = []
            for picture in (x[k : k + 1], x_adv[k : k + 1]):
                states = [s[0] for s in net.maps(picture)]
                inputs = [states[0], F.max_pool2d(states[1], 2), states[2]]
                pairs.append(
                    [matrix_by_loops(a, b) for a, b in zip(inputs, states[1:], strict=True)]
                )
            for cell, (a, b) in enumerate(zip(*pairs, strict=True)):
                square = (a - b).square()
                totals[cell] += float(square.mean() if reduce == "mean" else square.sum())
    return [total / len(x) for total in totals]


def test_matrix_is_equation_1():
    f_in, f_out = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    found = fsp_matrix(f_in, f_out)
    assert found.shape == (2, 3, 6)
    for k in range(2):
        torch.testing.assert_close(found[k].double(), matrix_by_loops(f_in[k], f_out[k]))
    torch.testing.assert_close(found, torch.einsum("nihw,njhw->nij", f_in, f_out) / 20)


def test_larger_inputs_are_max_pooled():
    f_in, f_out = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
    pooled = F.max_pool2d(f_in, 2)
    torch.testing.assert_close(fsp_matrix(f_in, f_out), fsp_matrix(pooled, f_out))


def test_half_precision_is_computed_in_float32():
    f = torch.full((1, 1, 64, 64), 200.0, dtype=torch.float16)  # 200² is beyond the sum's range
    found = fsp_matrix(f, f)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(40000)


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3, 4), (2, 3, 4)), ((2, 3, 4, 4), (3, 3, 4, 4)), ((2, 3, 2, 4), (2, 3, 4, 4))]
)
def test_matrices_of_other_shapes_are_refused(a, b):
    with pytest.raises(ValueError, match=r"no feature maps|smaller"):
        fsp_matrix(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_distance_is_that_of_loops(net, pictures, reduce):
    found = fsp_distance(net, *pictures, reduce=reduce)
    assert found == pytest.approx(distance_by_loops(net, *pictures, reduce), rel=1e-4)


def test_sum_is_mean_times_entries(net, pictures):
    mean, total = (fsp_distance(net, *pictures, reduce=reduce) for reduce in ("mean", "sum"))
    entries = [4 * 5, 5 * 6, 6 * 7]
    assert total == pytest.approx([m * n for m, n in zip(mean, entries, strict=True)], rel=1e-6)


def test_batches_make_no_difference(net, pictures):
    whole = fsp_distance(net, *pictures)
    for size in (1, 3, 7):
        assert fsp_distance(net, *pictures, batch_size=size) == pytest.approx(whole, rel=1e-5)


def test_identical_pictures_have_no_distance(net, pictures):
    assert fsp_distance(net, pictures[0], pictures[0].clone()) == [0.0, 0.0, 0.0]


def test_distance_grows_with_the_attack(net, pictures):
    x, x_adv = pictures
    small = fsp_distance(net, x, x + 0.1 * (x_adv - x))
    assert all(a < b for a, b in zip(small, fsp_distance(net, x, x_adv), strict=True))


def test_the_network_is_left_as_it_was(net, pictures):
    net.train()
    net.cells[1].norm.eval()
    net.head.weight.requires_grad_(False)
    net.stem.weight.grad = torch.ones_like(net.stem.weight)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    fsp_distance(net, *pictures)
    assert net.training
    assert net.dropout.training
    assert not net.cells[1].norm.training
    assert [p.requires_grad for p in net.head.parameters()] == [False, True]
    assert (net.stem.weight.grad == 1).all()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_failing_network_keeps_no_hooks(net, pictures):
    net.train()
    with pytest.raises(RuntimeError):
        fsp_distance(net, torch.rand(2, 5, 8, 8), torch.rand(2, 5, 8, 8))
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_taps_by_name_and_by_argument(net, pictures):
    by_argument = fsp_distance(net, *pictures)
    assert fsp_taps(net) == [(1, "cells.0"), (1, "cells.1"), (1, "cells.2")]
    by_name = [("stem", "cells.0"), ("cells.0", "cells.1"), ("cells.1", "cells.2")]
    assert fsp_distance(net, *pictures, cells=by_name) == by_argument
    older = fsp_distance(net, *pictures, cells=fsp_taps(net, argument=0))
    assert older[0] == by_argument[0]  # both inputs of the first cell are the stem's output
    assert older[2] == fsp_distance(net, *pictures, cells=[("cells.0", "cells.2")])[0]
    assert older[2] != by_argument[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": [("stam", "cells.0")]}, "no module 'stam'; did you mean 'stem'"),
        ({"cells": [(5, "cells.0")]}, "5 of .* gave no tensor"),
        ({"reduce": "max"}, "reduce: 'max'"),
        ({"batch_size": 0}, "batch_size: 0"),
    ],
)
def test_mistakes_are_named(net, pictures, settings, message):
    with pytest.raises(UserError, match=message):
        fsp_distance(net, *pictures, **settings)


def test_networks_without_cells_are_refused(net, pictures):
    with pytest.raises(UserError, match="no list of modules 'cells'"):
        fsp_distance(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), *pictures)
    with pytest.raises(UserError, match="'blocks'"):
        fsp_taps(net, cells="blocks")


def test_a_module_used_twice_is_refused(pictures):
    conv = nn.Conv2d(3, 3, 3, 1, 1)
    with pytest.raises(UserError, match="more than once"):
        fsp_distance(nn.Sequential(conv, nn.ReLU(), conv), *pictures, cells=[(0, "0")])


def test_pictures_must_match(net):
    for n, m in ((2, 3), (0, 0)):
        with pytest.raises(ValueError, match="cannot be compared"):
            fsp_distance(net, torch.rand(n, 3, 8, 8), torch.rand(m, 3, 8, 8))


def test_overflow_is_no_number(net, pictures):
    with torch.no_grad():
        net.cells[1].newer.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"'cells.1' are not finite"):
        fsp_distance(net, *pictures)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_on_a_robnet(stem):
    from nni_robust.search_spaces import RobNet

    torch.manual_seed(0)
    size = 8 if stem == "cifar" else 32
    codes = ["33333131231113", "33123210120232", "33333103222131", "31021323110231"]
    net = RobNet(codes, init_channels=4, cells=4, stem=stem)
    x = torch.rand(4, 3, size, size)
    found = fsp_distance(net, x, (x + 0.05).clamp(max=1))
    assert len(found) == 4
    assert all(distance > 0 for distance in found)
    inputs = ["stem" if stem == "cifar" else "stem1", *(f"cells.{i}" for i in range(3))]
    taps = [(source, f"cells.{i}") for i, source in enumerate(inputs)]
    assert fsp_distance(net, x, (x + 0.05).clamp(max=1), cells=taps) == found
