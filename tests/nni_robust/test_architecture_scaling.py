"""Rules that fit a teacher into a budget, against WRN-A1, brute force and the costs themselves."""

from __future__ import annotations

import itertools

import pytest

from nni_robust.architecture import Architecture, load_architecture
from nni_robust.architecture.scaling import RULES, Below, below_teacher, scale_down
from nni_robust.errors import UserError
from nni_robust.task import Budget


def below(name: str = "wrn-28-10") -> Below:
    return below_teacher(load_architecture(name))


def numbers(sample: dict[str, int], what: str) -> list[int]:
    return [sample[f"stage{i}/{what}"] for i in (1, 2, 3)]


def test_the_compound_rule_gives_wrn_a1() -> None:
    """Huang et al. scaled WRN-A1 (5.077 G) by it: 35 blocks to a sum of widths of 15."""
    sample = scale_down(below("wrn-a4"), Budget(macs=5.1e9, tolerance=0))
    assert sample == load_architecture("wrn-a1").sample


def test_the_compound_rule_keeps_its_proportions() -> None:
    for macs in (1e9, 3e9, 10e9):
        sample = scale_down(below("wrn-a4"), Budget(macs=macs, tolerance=0))
        depths, widths = numbers(sample, "depth"), numbers(sample, "width")
        assert sum(depths) / sum(widths) == pytest.approx(7 / 3, rel=0.15)
        for got, ratio in zip(depths, (0.4, 0.4, 0.2), strict=True):
            assert abs(got - ratio * sum(depths)) <= 1
        for got, ratio in zip(widths, (2 / 5.5, 2.5 / 5.5, 1 / 5.5), strict=True):
            assert abs(got - ratio * sum(widths)) <= 1


@pytest.mark.parametrize("rule", RULES)
def test_budgets_are_kept_and_used(rule: str) -> None:
    """More budget never gives less network, and the teacher's numbers are never exceeded."""
    space = below("wrn-70-16")
    before = 0
    for giga in (0.05, 0.5, 2, 5, 12, 30):
        sample = scale_down(space, Budget(macs=giga * 1e9, tolerance=0), rule)
        macs = space.cost(sample).macs
        assert before <= macs <= giga * 1e9
        assert macs > 0.4 * giga * 1e9
        assert all(sample[label] <= space.teacher[label] for label in sample)
        before = macs
    few = scale_down(space, Budget(params=3e6, tolerance=0), rule)
    assert 1e6 < space.cost(few).params <= 3e6


def test_the_last_stage_is_reduced_first() -> None:
    space = below()
    sample = scale_down(space, Budget(macs=4e9, tolerance=0), "last-stage")
    assert numbers(sample, "depth")[:2] == [4, 4]
    assert numbers(sample, "width")[:2] == [10, 10]
    assert numbers(sample, "depth")[2] < 4
    small = scale_down(space, Budget(macs=1e9, tolerance=0), "last-stage")
    assert (numbers(small, "depth")[2], numbers(small, "width")[2]) == (1, 1)
    assert numbers(small, "width")[0] < 10


def test_the_smallest_network_is_the_cheapest_of_all() -> None:
    teacher = Architecture(
        "t",
        "wide-resnet",
        {"depths": [2, 2, 1], "widths": [2, 2, 2], "search_blocks": True, "se_reduction": 16},
        {f"stage{i}/{k}": v for i, d in ((1, 2), (2, 2), (3, 1))
         for k, v in (("depth", d), ("width", 2), ("block", "robust"))},
    )  # fmt: skip
    for search_blocks in (False, True):
        space = below_teacher(teacher, search_blocks=search_blocks)
        choices = space.space.simplify()
        assert set(choices) == set(space.teacher)
        every = (
            dict(zip(choices, values, strict=True))
            for values in itertools.product(*(choice.values for choice in choices.values()))
        )
        least = min(space.cost(sample).macs for sample in every)
        assert space.cost(space.smallest()).macs == least
    assert space.teacher["stage3/block"] == "robust"


def test_a_teacher_is_the_network_and_not_its_space() -> None:
    """Below a found network are those below it, not those below the teacher it came from."""
    space = below("rcnas-20g-aa")
    assert numbers(space.teacher, "depth") == [15, 15, 5]
    assert space.space_args["blocks"] == ["basic", "basic", "robust"]
    assert space.cost(space.teacher) == load_architecture("rcnas-20g-aa").cost()
    larger = below_teacher(load_architecture("wrn-a1"), num_classes=100, input_shape=(3, 64, 64))
    assert larger.cost(larger.teacher) == load_architecture("wrn-a1").cost((3, 64, 64), 100)


def test_what_cannot_be() -> None:
    space = below()
    least = space.cost(space.smallest())
    with pytest.raises(UserError, match=r"the smallest has 0\.0125 G MACs and 0\.07785 M param"):
        scale_down(space, Budget(macs=least.macs - 1, tolerance=0))
    assert scale_down(space, Budget(macs=least.macs, tolerance=0)) == space.smallest()
    with pytest.raises(UserError, match=r"the teacher itself keeps the budget: it has 5\.243 G"):
        scale_down(space, Budget(macs=5e9))  # with the tolerance of 10 %
    with pytest.raises(UserError, match="rule: 'scale' is not allowed; did you mean 'scaling'"):
        scale_down(space, Budget(macs=1e9), "scale")
    with pytest.raises(UserError, match="'darts-v2' is of the space 'darts', which has no depths"):
        below("darts-v2")
