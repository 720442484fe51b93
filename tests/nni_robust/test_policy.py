"""Policies: levels, exact budget masks, probabilities, files, proposals."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import nni
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d
from torch import nn

from nni_robust.cost import Cost
from nni_robust.errors import UserError
from nni_robust.policy import (
    Choice,
    Options,
    Policy,
    choice_log_probs,
    levels_of,
    load_policy,
    options_for,
    save_policy,
)
from nni_robust.search_spaces import WideResNetSpace
from nni_robust.task import Budget, Task
from nni_robust.teacher import Teacher

SMALL: dict[str, Any] = {"depths": (3, 3, 2), "widths": (2, 3, 4), "base_channels": (4, 4, 8)}


def small(**changes: Any) -> Any:
    with torch.device("meta"):
        return WideResNetSpace(10, **{**SMALL, **changes})


class OwnSpace(ModelSpace):
    """A space that a user might define: an ordered and an unordered choice."""

    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [2, 4, 8])
        self.stem = MutableConv2d(3, width, 1)
        self.op = LayerChoice(
            {"conv": MutableConv2d(width, width, 3, padding=1), "skip": nn.Identity()}, label="op"
        )
        self.head = MutableConv2d(width, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.op(self.stem(x))).mean((2, 3))


def test_levels_are_the_keep_ratios() -> None:
    """max(1, floor(k n / 16 + 0.5)) of the specification reaches every integer up to n <= 16."""
    for n in range(1, 17):
        found = levels_of(list(range(1, n + 1)))
        assert sorted(found.values()) == list(range(1, n + 1))
        for index, value in found.items():
            assert max(1, int((index + 1) * n / 16 + 0.5)) == value
    assert levels_of([4, 5, 7, 9, 11])[15] == 11
    assert sorted(levels_of([1, 2, 3, 100]).values()) == [1, 2, 3, 100]


@settings(max_examples=8)
@given(share=st.floats(0.02, 1.0), seed=st.integers(0, 999), blocks=st.booleans())
def test_no_draw_exceeds_the_budget(share: float, seed: int, blocks: bool) -> None:
    """And every network that keeps it can be drawn: the mask is exact."""
    space = small(
        search_blocks=blocks, widths=(2, 2, 2), depths=(2, 1, 2), base_channels=(16, 16, 16)
    )
    free = options_for(space, Task(), (3, 8, 8))
    largest = free.cost(free.largest).macs
    budget = Budget(macs=share * largest, tolerance=0.1)
    rng = np.random.default_rng(seed)
    try:
        options = options_for(space, Task(budget=budget), (3, 8, 8))
    except UserError as e:
        assert "no network of the space keeps" in str(e)  # noqa: PT017
        return
    assert options.sequential
    logits = [rng.normal(size=choice.size) * 3 for choice in options.choices]
    for _ in range(10):
        draw = options.draw(logits, rng)
        assert space.cost(draw.sample, (3, 8, 8)).macs <= 1.1 * share * largest
        assert draw.sample != options.teacher


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_budget_of_a_cost_that_is_not_monotone(seed: int) -> None:
    """Random costs: sequential masks would be wrong, whole draws are rejected instead."""
    rng = np.random.default_rng(seed)
    table = rng.integers(1, 100, size=(3, 3, 3))
    choices = [Choice(f"c{i}", i, f"c{i}", True, (1, 2, 3), (1 / 3,) * 3) for i in range(3)]
    limit = float(np.quantile(table, 0.4))

    def cost(sample: dict[str, Any]) -> Cost:
        return Cost(params=1, macs=int(table[tuple(sample[f"c{i}"] - 1 for i in range(3))]))

    options = Options(choices, cost=cost, budget=Budget(macs=limit, tolerance=0))
    assert not options.sequential
    seen = set()
    for _ in range(300):
        sample = options.draw([np.zeros(16)] * 3, rng).sample
        assert cost(sample).macs <= limit
        seen.add(tuple(sample.values()))
    assert len(seen) > 0.8 * (table <= limit).sum()


def test_exact_mask_leaves_all_feasible_networks() -> None:
    space = small(depths=(2, 2, 2), widths=(2, 2, 2))
    labels = list(space.simplify())
    costs = {v: space.cost(dict(zip(labels, v, strict=True)), (3, 8, 8)).macs
             for v in itertools.product((1, 2), repeat=6)}  # fmt: skip
    limit = float(np.median(list(costs.values())))
    options = options_for(space, Task(budget=Budget(macs=limit, tolerance=0)), (3, 8, 8))
    rng = np.random.default_rng(0)
    logits = [np.zeros(choice.size) for choice in options.choices]
    drawn = [options.draw(logits, rng).sample for _ in range(500)]
    seen = {tuple(sample[k] for k in labels) for sample in drawn}
    assert seen == {v for v, macs in costs.items() if macs <= limit}


def test_teacher_and_minimum_bound_the_numbers() -> None:
    space = small(depths=(4, 4, 4), widths=(10, 10, 10))
    task = Task(teacher=Teacher("wrn-16-1"))
    options = options_for(space, task, (3, 8, 8), minimum={"stage1/depth": 2})
    allowed = {c.label: sorted(v.values()) for c, v in zip(options.choices, options.values,
                                                           strict=True)}  # fmt: skip
    assert allowed["stage1/depth"] == [2]
    assert allowed["stage2/depth"] == [1, 2]
    assert allowed["stage3/width"] == [1]
    with pytest.raises(UserError, match="'dpth' is no choice"):
        options_for(space, task, (3, 8, 8), minimum={"dpth": 2})


def test_log_probabilities_by_hand() -> None:
    """A second computation, choice by choice; all allowed networks sum to one."""
    policy = Policy.of(small(), seed=1)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    options = Options(policy.choices)
    from nni_robust.policy import Context

    state = policy.state(Context(Task(), 10, 8), options.teacher)
    rng = np.random.default_rng(0)
    draws = [options.draw(policy.arrays(state), rng) for _ in range(4)]
    with torch.no_grad():
        logits, _ = policy.logits([state] * 4)
    logs, entropies = choice_log_probs(
        logits,
        torch.from_numpy(np.stack([d.indices for d in draws])),
        torch.from_numpy(np.stack([d.mask for d in draws])),
    )
    for row, draw in enumerate(draws):
        for place, head in enumerate(policy.arrays(state)):
            allowed = list(options.values[place])
            p = np.exp(head[allowed]) / np.exp(head[allowed]).sum()
            assert np.log(p[allowed.index(draw.indices[place])]) == pytest.approx(
                float(logs[row, place]), abs=1e-5
            )
            assert -(p * np.log(p)).sum() == pytest.approx(float(entropies[row, place]), abs=1e-5)


def test_file_and_proposal(tmp_path: Path) -> None:
    policy = Policy.of(small(search_blocks=True, base_channels=(16, 16, 16)), seed=3)
    with torch.no_grad():
        for head in policy.network.heads:
            head.bias.normal_(generator=torch.manual_seed(0))  # type: ignore[operator, union-attr]
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path)  # a run folder that holds one
    task = Task(budget=Budget(macs=600_000, tolerance=0))
    space = small(
        search_blocks=True, depths=(5, 4, 3), base_channels=(16, 16, 16)
    )  # another teacher
    sample = policy.propose(space, task, seed=1, draws=8)
    assert again.propose(space, task, seed=1, draws=8) == sample
    assert space.cost(sample, (3, 8, 8)).macs <= 600_000
    with pytest.raises(UserError, match="the policy decides 'stage1/block'"):
        policy.propose(small(), task)
    with pytest.raises(UserError, match="does not decide 'width'"):
        policy.propose(OwnSpace(), task)
    (tmp_path / "policy" / "policy.json").write_text('{"format": "nni-robust policy 1"}')
    with pytest.raises(UserError, match="is damaged"):
        load_policy(tmp_path)
    (tmp_path / "policy" / "policy.json").unlink()
    with pytest.raises(UserError, match="no policy in"):
        load_policy(tmp_path)


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    save_policy(Policy.of(small()), tmp_path)
    (tmp_path / "policy.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError):
        load_policy(tmp_path)


def test_space_of_the_user_with_a_budget() -> None:
    """No closed form: networks are counted."""
    space = OwnSpace()
    policy = Policy.of(space)
    # 8x8 pictures, 3 and 10 channels at the ends: width 4 fits
    # without a convolution between them, width 2 costs 2 * (13 + 2 * 9) * 64 with one, too much.
    task = Task(budget=Budget(macs=4 * 13 * 64, tolerance=0))
    found = [policy.propose(space, task, seed=seed) for seed in range(20)]
    assert all(sample["op"] == "skip" and sample["width"] <= 4 for sample in found)
