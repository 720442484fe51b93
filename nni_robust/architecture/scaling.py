"""Sub-networks of a teacher for a budget, by rules: what a search has to beat.

Works on spaces whose choices are ``stageN/depth`` and ``stageN/width`` of three stages and which
know their costs in closed form, such as ``wide-resnet``.

* ``scaling``: the compound rule of Huang et al., CVPR 2023 (https://arxiv.org/abs/2212.11005,
  README of zhichao-lu/robust-residual-network): depths as 2 : 2 : 1, widths as 2 : 2.5 : 1, sum of
  depths to sum of widths as 7 : 3. Their WRN-A1 is it for 5.1 G; A2 to A4 are rounded otherwise.
  Depths and widths beyond the teacher's stay at the teacher's.
* ``last-stage``: the earlier advice of Huang et al., NeurIPS 2021
  (https://arxiv.org/abs/2110.03825), to take capacity from the last stage: that stage keeps a share
  of its depth and width; where its smallest is not small enough, the other two shrink alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nni_robust.architecture._architecture import Architecture
from nni_robust.architecture.space import open_space
from nni_robust.cost import Cost
from nni_robust.errors import UserError, nearest
from nni_robust.task import Budget

__all__ = ["RULES", "Below", "below_teacher", "scale_down"]

_STAGES = (1, 2, 3)
_DEPTHS, _WIDTHS, _DEPTH_TO_WIDTH = (2, 2, 1), (2, 2.5, 1), 7 / 3
#: Keep ratios of `last-stage` are sixteenths.
_LEVELS = 16

Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Below:
    """All networks below a teacher, with what they cost.

    Parameters
    ----------
    space
        The NNI space, on the meta device.
    space_args
        Arguments of its constructor besides the number of classes.
    input_shape
        (C, H, W) of the pictures that costs are for.
    teacher
        Sample of the teacher itself.
    """

    space: Any
    space_args: dict[str, Any]
    input_shape: tuple[int, int, int]
    teacher: Sample

    def cost(self, sample: Mapping[str, Any]) -> Cost:
        """Exact cost of a sample's network."""
        cost: Cost = self.space.cost(sample, self.input_shape)
        return cost

    def values(self, stage: int, what: str) -> list[int]:
        """Allowed depths or widths of a stage, in increasing order."""
        return sorted(self.space.simplify()[f"stage{stage}/{what}"].values)

    def smallest(self) -> Sample:
        """The sample of least cost: least depths and widths, and the cheapest types of block."""
        choices = self.space.simplify()
        numbers = {
            label: min(choice.values)
            for label, choice in choices.items()
            if all(isinstance(value, int) for value in choice.values)
        }
        others = [label for label in choices if label not in numbers]
        samples = (
            {**numbers, **dict(zip(others, combination, strict=True))}
            for combination in itertools.product(*(choices[label].values for label in others))
        )
        return min(samples, key=lambda sample: self.cost(sample).macs)


def below_teacher(
    teacher: Architecture,
    *,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    search_blocks: bool = False,
) -> Below:
    """The space of all networks below an architecture's network.

    Parameters
    ----------
    teacher
        The architecture; what its own space leaves open does not matter, only its network.
    num_classes, input_shape
        Of the task; None is the architecture's own.
    search_blocks
        Whether the type of block is a choice, too.

    Raises
    ------
    UserError
        If the architecture's space has no such sub-networks.
    """
    classes = teacher.num_classes if num_classes is None else num_classes
    own = open_space(teacher.space, teacher.space_args, classes)
    if not hasattr(own, "below"):
        raise UserError(
            f"'{teacher.name}' is of the space '{teacher.space}', which has no depths and widths "
            "to reduce; a network of the space wide-resnet can be compressed"
        )
    arguments, sample = own.below(teacher.sample, search_blocks=search_blocks)
    space = open_space(teacher.space, arguments, classes)
    shape = teacher.input_shape if input_shape is None else input_shape
    return Below(space, arguments, shape, sample)


def scale_down(below: Below, budget: Budget, rule: str = "scaling") -> Sample:
    """The largest network of a rule that keeps the budget.

    Parameters
    ----------
    below
        The networks below the teacher.
    budget
        What it may cost, tolerance included.
    rule
        A key of :data:`RULES`.

    Raises
    ------
    UserError
        If the rule is unknown, the teacher itself keeps the budget, or no network below it does.
    """
    if rule not in RULES:
        raise UserError(
            f"rule: {rule!r} is not allowed{nearest(rule, RULES)} (allowed: {', '.join(RULES)})"
        )
    check_budget(below, budget)
    if budget.allows(below.cost(below.teacher)):
        raise UserError(
            f"the teacher itself keeps the budget: it has {_text(below.cost(below.teacher))}; "
            "a smaller budget is needed"
        )
    best = below.smallest()
    for sample in RULES[rule](below):
        if budget.allows(below.cost(sample)) and below.cost(sample).macs > below.cost(best).macs:
            best = sample
    return best


def check_budget(below: Below, budget: Budget) -> None:
    """Refuse a budget that not even the smallest network below the teacher keeps.

    Raises
    ------
    UserError
        Naming the least cost.
    """
    least = below.cost(below.smallest())
    if not budget.allows(least):
        raise UserError(
            f"no network below the teacher keeps the budget: the smallest has {_text(least)}"
        )


def _text(cost: Cost) -> str:
    return f"{cost.macs / 1e9:.4g} G MACs and {cost.params / 1e6:.4g} M parameters"


def _compound(below: Below) -> Iterator[Sample]:
    """Networks of the compound rule, one after the other, as the sum of widths grows."""
    width_sum, depth_sum = sum(_WIDTHS), sum(_DEPTHS)
    per_width = {  # how fast each number grows with the sum of widths
        f"stage{stage}/{what}": rate
        for stage, wide, deep in zip(_STAGES, _WIDTHS, _DEPTHS, strict=True)
        for what, rate in (
            ("width", wide / width_sum),
            ("depth", _DEPTH_TO_WIDTH * deep / depth_sum),
        )
    }
    # A number changes where it is half-way between two integers.
    steps = {
        (value - 0.5) / rate
        for label, rate in per_width.items()
        for value in range(1, below.teacher[label] + 1)
    }
    for total in sorted(steps):
        yield _fitted(
            below,
            {label: math.floor(total * rate + 0.5 + 1e-9) for label, rate in per_width.items()},
        )


def _last_stage(below: Below) -> Iterator[Sample]:
    """Networks whose last stage shrinks, and, when that is smallest, the two before it."""
    for level in range(1, _LEVELS):
        yield _kept(below, (_LEVELS, _LEVELS, level))
        yield _kept(below, (level, level, 1))


#: Name -> the networks that a rule offers.
RULES: dict[str, Callable[[Below], Iterator[Sample]]] = {
    "scaling": _compound,
    "last-stage": _last_stage,
}


def _kept(below: Below, levels: tuple[int, int, int]) -> Sample:
    """The sample that keeps so many sixteenths of each stage's depth and width."""
    return _fitted(
        below,
        {
            label: math.floor(level * below.teacher[label] / _LEVELS + 0.5)
            for stage, level in zip(_STAGES, levels, strict=True)
            for label in (f"stage{stage}/depth", f"stage{stage}/width")
        },
    )


def _fitted(below: Below, wanted: Mapping[str, int]) -> Sample:
    """The teacher's sample with other numbers: the largest allowed ones that do not exceed them."""
    sample = dict(below.teacher)
    for label, number in wanted.items():
        stage, what = label.removeprefix("stage").split("/")
        allowed = below.values(int(stage), what)
        sample[label] = max((value for value in allowed if value <= number), default=allowed[0])
    return sample
