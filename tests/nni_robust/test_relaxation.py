"""Relaxation: one draw per label, exact at whole weights, costs, temperature, NNI's spaces."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import nni
import numpy as np
import pytest
import torch
from nni.nas.nn.pytorch import (
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLayerNorm,
    MutableLinear,
    Repeat,
)
from torch import Tensor, nn

from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.relaxation import (
    Relaxed,
    gumbel_weights,
    most_likely,
    one_hot,
    relax,
    start_logits,
    temperature,
)
from nni_robust.search_spaces import (
    BaselineSpace,
    DartsSpace,
    InvertedResidualSpace,
    RobNetSpace,
    WideResNetSpace,
)

SMALL: dict[str, Any] = {
    "preset": None,
    "stages": [{"blocks": 2, "widths": [4, 2]}, {"blocks": 2, "widths": [6, 5, 3], "stride": 2}],
    "stem_channels": 4,
    "stem_stride": 1,
}


class UserSpace(ModelSpace):
    """Every kind of choice that a user's space may have."""

    def __init__(self) -> None:
        super().__init__()
        width, features = nni.choice("width", [4, 8, 6]), nni.choice("features", [6, 3])
        size = nni.choice("size", [1, 3, 5])
        self.conv = MutableConv2d(3, width, kernel_size=size, padding=size // 2)
        self.bn = MutableBatchNorm2d(width)
        self.dw = MutableConv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn1 = MutableBatchNorm2d(width)
        self.pw = MutableConv2d(width, features, 1, bias=False)
        self.bn2 = MutableBatchNorm2d(features)
        self.op = LayerChoice([nn.Identity(), nn.AvgPool2d(3, 1, 1)], label="op")
        self.input = InputChoice(2, 1, label="input")
        self.repeat = Repeat(lambda i: nn.Tanh(), (1, 3), label="depth")
        self.fc = MutableLinear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.dw(torch.relu(self.bn(self.conv(x)))))
        x = self.bn2(self.pw(x))
        x = self.repeat(self.input([self.op(x), x]))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


SPACES = {
    "inverted": lambda: InvertedResidualSpace(**SMALL),
    "robnet": lambda: RobNetSpace(init_channels=2, cells=3),
    "robnet-free": lambda: RobNetSpace(init_channels=2, cells=3, cell_free=True),
    "darts": lambda: DartsSpace(width=2, cells=3),
    "user": UserSpace,
}


def opened(name: str) -> Any:
    torch.manual_seed(0)
    relaxed: Any = relax(SPACES[name]())
    generator = torch.Generator().manual_seed(1)
    for module in relaxed.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return relaxed


def sampled(relaxed: Relaxed, seed: int) -> dict[str, Any]:
    random = np.random.RandomState(seed)
    return {label: values[random.randint(len(values))] for label, values in relaxed.choices.items()}


@pytest.mark.parametrize("name", SPACES)
def test_whole_weights_are_the_frozen_network(name: str) -> None:
    relaxed = opened(name)
    assert isinstance(relaxed, Relaxed)
    relaxed.network.eval()
    x = torch.rand(2, 3, 8, 8)
    for seed in range(3):
        sample = sampled(relaxed, seed)
        relaxed.set_weights(one_hot(relaxed.choices, sample))
        with torch.no_grad():
            expected = relaxed.freeze(sample).eval()(x)
            found = relaxed.network(x)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_whole_weights_cost_what_the_network_costs(name: str) -> None:
    relaxed = opened(name)
    for seed in range(4):
        sample = sampled(relaxed, seed)
        cost = relaxed.cost(one_hot(relaxed.choices, sample), (3, 8, 8))
        measured = measure_cost(relaxed.freeze(sample), (3, 8, 8))
        assert (cost["macs"].item(), cost["params"].item()) == (measured.macs, measured.params)


@pytest.mark.parametrize("name", SPACES)
def test_every_choice_gets_a_gradient(name: str) -> None:
    relaxed = opened(name)
    logits = start_logits(relaxed.choices)
    generator = torch.Generator().manual_seed(0)
    relaxed.set_weights(gumbel_weights(logits, 5.0, generator))
    out = relaxed.network.train()(torch.rand(4, 3, 8, 8))
    (out * torch.rand_like(out)).sum().backward()
    for label, theta in logits.items():
        assert theta.grad is not None, label
        assert len(theta) == 1 or theta.grad.abs().sum() > 0, label
        theta.grad = None
    cost = relaxed.cost(gumbel_weights(logits, 5.0, generator), (3, 8, 8))
    assert cost["macs"].dtype == torch.float64
    (cost["macs"] + cost["params"]).backward()
    assert any(theta.grad.abs().sum() > 0 for theta in logits.values() if theta.grad is not None)


@pytest.mark.parametrize("name", ["robnet", "inverted"])
def test_cost_is_the_expectation(name: str) -> None:
    """Against a mean over drawn samples (additive spaces, and products of neighbours' widths)."""
    space: Any = SPACES[name]()
    relaxed: Any = relax(SPACES[name]())
    generator = torch.Generator().manual_seed(3)
    weights = {
        label: torch.rand(len(values), generator=generator).double().softmax(0)
        for label, values in relaxed.choices.items()
    }
    expected = relaxed.cost(weights, (3, 8, 8))
    random = np.random.RandomState(0)
    draws = [
        space.cost(
            {
                label: values[random.choice(len(values), p=weights[label].numpy())]
                for label, values in relaxed.choices.items()
            },
            (3, 8, 8),
        )
        for _ in range(3000)
    ]
    for key in ("macs", "params"):
        values = np.array([getattr(cost, key) for cost in draws])
        error = 5 * values.std() / math.sqrt(len(values))
        assert abs(expected[key].item() - values.mean()) < error


@pytest.mark.parametrize("mid", ["input", "full"])
@pytest.mark.parametrize("legacy", [False, True])
def test_wider_is_dearer(mid: str, legacy: bool) -> None:
    space = InvertedResidualSpace(**SMALL, mid=mid, head_channels=5)
    relaxed = space.relaxed(legacy_cost=legacy)
    weights = {
        label: torch.full((len(values),), 1 / len(values), requires_grad=True)
        for label, values in relaxed.choices.items()
    }
    for key in ("macs", "params"):
        relaxed.cost(weights, (3, 8, 8))[key].backward()
        for label, w in weights.items():
            assert w.grad is not None
            widest_first: list[float] = w.grad.tolist()
            assert all(a > b for a, b in itertools.pairwise(widest_first)), label
            w.grad = None


@pytest.mark.parametrize(("which", "expected"), [(0, 3.13e8), (-1, 1.65e8)])
def test_legacy_cost_is_the_released_formula(which: int, expected: float) -> None:
    """S7's widest and narrowest network, as computed from the released code."""
    with torch.device("meta"):
        space = InvertedResidualSpace(preset="s7")
        relaxed = space.relaxed(legacy_cost=True)
    sample = {label: values[which] for label, values in relaxed.choices.items()}
    cost = relaxed.cost(one_hot(relaxed.choices, sample), (3, 32, 32))
    assert cost["macs"].item() == pytest.approx(expected, rel=0.005)
    assert cost["params"].item() == space.cost(sample).params
    # A second writing of the formula, for equal weights: what it has of widths is their mean.
    means = {label: float(np.mean(values)) for label, values in relaxed.choices.items()}
    total, before = 0.0, 16.0
    for stage, side in ((1, 16), (2, 8), (3, 4)):
        e = 1 if stage == 1 else 6
        for block in range(1, 8):
            c = means[f"stage{stage}/block{block}/width"]
            total += side**2 * (before * c * e + 9 * (c * e) ** 2 + c * c * e)
            before = c
    equal = {label: torch.full((len(v),), 1 / len(v)) for label, v in relaxed.choices.items()}
    assert relaxed.cost(equal, (3, 32, 32))["macs"].item() == pytest.approx(total, rel=1e-6)


def test_masks_are_mixtures_behind_the_norm() -> None:
    """A block's output against its formula; a norm does not undo the mask."""
    relaxed = opened("inverted")
    weights = {
        label: torch.rand(len(values)).softmax(0) for label, values in relaxed.choices.items()
    }
    relaxed.set_weights(weights)
    block = relaxed.network.eval().get_submodule("stages.1.1")
    x = torch.rand(2, 6, 4, 4)
    g_in, g_out = weights["stage2/block1/width"], weights["stage2/block2/width"]

    def mask(g: Tensor) -> Tensor:  # widths 6, 5, 3
        return torch.stack([g.sum()] * 3 + [g[0] + g[1]] * 2 + [g[0]])

    inner = mask(g_in).repeat_interleave(6)[:, None, None]
    body = block.pwl(block.dw(block.pw(x)) * inner)
    torch.testing.assert_close(block(x), (body + x) * mask(g_out)[:, None, None])


@pytest.mark.parametrize("name", SPACES)
def test_one_draw_for_all_forwards_until_the_next(name: str) -> None:
    relaxed = opened(name)
    relaxed.network.eval()
    logits = {label: theta.data for label, theta in start_logits(relaxed.choices).items()}
    x = torch.rand(1, 3, 8, 8)
    relaxed.set_weights(gumbel_weights(logits, 1.0))
    first = relaxed.network(x)
    first.sum().backward()
    second = relaxed.network(x)  # also behind a backward pass
    assert torch.equal(first, second)
    second.sum().backward()
    copied = copy.deepcopy(relaxed.network)
    relaxed.set_weights(gumbel_weights(logits, 1.0))
    assert not torch.equal(relaxed.network(x), first)
    torch.testing.assert_close(copied(x), first)


def test_deep_copies_leave_the_graph() -> None:
    relaxed = opened("user")
    logits = start_logits(relaxed.choices)
    relaxed.set_weights(gumbel_weights(logits, 1.0))
    copied = copy.deepcopy(relaxed.network).eval()
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(copied(x), relaxed.network.eval()(x))
    copied(x).sum().backward()
    assert all(theta.grad is None for theta in logits.values())


def test_norms_do_not_undo_nnis_masks() -> None:
    """NNI's own batch norm would bring faint channels back to full size."""
    relaxed = opened("user")
    sample = sampled(relaxed, 0)
    weights = one_hot(relaxed.choices, {**sample, "width": 4})
    weights["width"] = torch.tensor([0.98, 0.01, 0.01])  # of 4, 8, 6
    relaxed.set_weights(weights)
    norm = relaxed.network.train().get_submodule("bn")
    out = norm(torch.randn(8, 8, 6, 6))
    strength = out.pow(2).mean((0, 2, 3)).sqrt()
    assert strength[:4].min() > 0.4
    assert strength[4:].max() < 0.1


def test_foreign_weights_are_named() -> None:
    relaxed = opened("inverted")
    weights = one_hot(relaxed.choices, sampled(relaxed, 0))
    for method in (relaxed.set_weights, lambda w: relaxed.cost(w, (3, 8, 8)), relaxed.sample):
        with pytest.raises(UserError, match=r"'stage1/block1/width' is missing"):
            method({k: v for k, v in weights.items() if k != "stage1/block1/width"})
        with pytest.raises(UserError, match=r"'stage1/block9/width' is no choice.*did you mean"):
            method({**weights, "stage1/block9/width": torch.ones(2)})
        with pytest.raises(UserError, match=r"the shape \(3,\) of 'stage1/block1/width'"):
            method({**weights, "stage1/block1/width": torch.ones(3)})
    with pytest.raises(UserError, match="stage1/block1/width: 7 is not allowed; allowed: 4, 2"):
        one_hot(relaxed.choices, {**sampled(relaxed, 0), "stage1/block1/width": 7})


class NormSpace(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.fc = MutableLinear(3, width)
        self.norm = MutableLayerNorm(width)


class MultipleSpace(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.input = InputChoice(3, 2, label="input")


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (lambda: WideResNetSpace(depths=1, widths=1), "do not share weights"),
        (BaselineSpace, "it has no choices"),
        (NormSpace, "norm"),
        (MultipleSpace, "'input' .* does not pick one value"),
        (lambda: DartsSpace(width=2, cells=3, cell="nasnet"), "cannot be relaxed"),
    ],
)
def test_spaces_that_cannot_be_relaxed_say_why(space: Any, reason: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)cannot be relaxed: .*{reason}|{reason}"):
        relax(space())


def test_temperature() -> None:
    published = {0: 5.0, 10: 3.188, 50: 0.527, 90: 0.0871, 100: 0.0555, 160: 0.00373, 200: 0.00062}
    for epoch, expected in published.items():
        assert temperature(epoch) == pytest.approx(expected, rel=0.01)
    assert temperature(10, 20) == pytest.approx(temperature(50))
    assert temperature(20, 20) == pytest.approx(0.0555, rel=0.01)


def test_gumbel_draws_follow_the_logits() -> None:
    """The largest of noisy logits is distributed as their softmax."""
    logits = {"a": torch.tensor([0.0, 1.0, 2.0])}
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([gumbel_weights(logits, 0.7, generator)["a"] for _ in range(4000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(4000))
    shares = torch.bincount(draws.argmax(1), minlength=3) / 4000
    torch.testing.assert_close(shares, logits["a"].softmax(0), atol=0.03, rtol=0)
    again = gumbel_weights(logits, 0.7, torch.Generator().manual_seed(0))["a"]
    assert torch.equal(draws[0], again)
    assert gumbel_weights(logits, 1e-3, generator)["a"].max() > 0.99
    with pytest.raises(UserError, match="tau: 0 is not allowed"):
        gumbel_weights(logits, 0)


def test_start_and_most_likely() -> None:
    choices = {"a": [8, 4], "b": ["x", "y", "z"]}
    logits = start_logits(choices)
    assert [theta.tolist() for theta in logits.values()] == [
        [0.5, 0.5],
        pytest.approx([1 / 3] * 3),
    ]
    assert most_likely(choices, logits) == {"a": 8, "b": "x"}
    logits["b"].data[2] = 1
    assert most_likely(choices, logits) == {"a": 8, "b": "z"}
