"""Drawing samples and setting paths, on spaces of our own and of NNI's making."""

from __future__ import annotations

import nni
import numpy as np
import pytest
import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d, Repeat
from torch import nn

from nni_robust.errors import UserError
from nni_robust.sampling import draw, draw_distinct
from nni_robust.supernet import PathSampler, build_supernet, inherit, set_path


class Space(ModelSpace):
    """Twelve networks of NNI's own parts."""

    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [2, 4])
        self.stem = MutableConv2d(3, width, 3, padding=1)
        self.op = LayerChoice(
            {
                "conv": MutableConv2d(width, width, 3, padding=1),
                "point": MutableConv2d(width, width, 1),
                "skip": nn.Identity(),
            },
            label="op",
        )
        self.deep = Repeat(lambda i: nn.Sequential(nn.ReLU()), (1, 2), label="depth")
        self.head = MutableConv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.deep(self.op(self.stem(x)))).mean((2, 3))


def test_draws_follow_the_prior_and_the_seed() -> None:
    choice = Categorical(["a", "b", "c"], weights=[0.7, 0.3, 0.0], label="x")
    mutables = {"x": choice}
    rng = np.random.RandomState(0)
    drawn = [draw(mutables, rng)["x"] for _ in range(2000)]
    error = 4 * (0.7 * 0.3 / 2000) ** 0.5  # four standard errors
    assert abs(drawn.count("a") / 2000 - 0.7) < error
    assert drawn.count("c") == 0
    uniform = [draw(mutables, rng, uniform=True)["x"] for _ in range(2000)]
    assert all(abs(uniform.count(v) / 2000 - 1 / 3) < error for v in "abc")
    again = np.random.RandomState(0)
    assert drawn[:5] == [draw(mutables, again)["x"] for _ in range(5)]


def test_distinct_samples_cover_the_space_and_then_it_is_told() -> None:
    mutables = Space().simplify()
    samples = draw_distinct(12, mutables, np.random.RandomState(1))
    assert len({tuple(sorted(s.items())) for s in samples}) == 12
    with pytest.raises(UserError, match="only 0 of 1 candidates"):
        draw_distinct(1, mutables, np.random.RandomState(1), exclude=samples)
    narrow = draw_distinct(6, mutables, np.random.RandomState(1), accept=lambda s: s["width"] == 2)
    assert {s["width"] for s in narrow} == {2}


def test_a_path_is_the_network_that_inherits_it() -> None:
    torch.manual_seed(0)
    space = Space()
    samples = draw_distinct(12, space.simplify(), np.random.RandomState(2))
    supernet = build_supernet(space)
    x = torch.rand(2, 3, 6, 6)
    for sample in samples:
        set_path(supernet, sample)
        network = inherit(supernet, sample)
        torch.testing.assert_close(supernet(x), network(x))
    # What inherits is a copy: training it leaves the supernet alone.
    before = [p.clone() for p in supernet.parameters()]
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, supernet.parameters(), strict=True))


def test_incomplete_path_is_told() -> None:
    supernet = build_supernet(Space())
    with pytest.raises(UserError, match="no value for"):
        set_path(supernet, {"op": "conv", "depth": 1})


def test_path_sampler_repeats_under_its_generator() -> None:
    space = Space()
    sampler = PathSampler(space.simplify())
    supernet = build_supernet(space)
    x = torch.rand(1, 3, 6, 6)

    def outputs(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(6):
            sampler.before_batch(supernet, generator)
            found.append(supernet(x).detach())
        return found

    first, again, other = outputs(3), outputs(3), outputs(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({tuple(o[0].tolist()) for o in first}) > 1
