"""A space's choices as a policy sees them: positions in an order, and one head for each choice.

An ordered choice (its values are numbers) has a head of 16 keep ratios: level k stands for the
allowed value nearest to k/16 of the largest allowed one. So the same head serves teachers of any
size. An unordered choice has one logit per value.

Choices labelled ``stage<i>/…`` are grouped by stage, as in RC-NAS (Wang et al., KDD 2024, figure of
the state encoder); in any other space every choice is a position of its own, in the space's order.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nni.mutable import Categorical, MutableAnnotation

from nni_robust.errors import UserError
from nni_robust.sampling import Sample

__all__ = ["LEVELS", "Choice", "levels_of", "read_choices", "same_value"]

#: Keep ratios of an ordered choice are k/16.
LEVELS = 16

_STAGE = re.compile(r"stage(\d+)/(.+)")
#: Within a stage, depth is decided before width.
_FIRST = {"depth": 0, "width": 1}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One categorical choice.

    Parameters
    ----------
    label
        Its label in samples.
    position
        Index in the sequence that the encoder reads.
    role
        What it is within its position, such as ``"depth"``; in spaces without stages the label.
    ordered
        Whether its values are numbers.
    values
        In increasing order where ordered, else in the space's.
    prior
        Probability of each value in the space.
    """

    label: str
    position: int
    role: str
    ordered: bool
    values: tuple[Any, ...]
    prior: tuple[float, ...]

    @property
    def size(self) -> int:
        """Logits of the head."""
        return LEVELS if self.ordered else len(self.values)


def read_choices(space: Any) -> list[Choice]:
    """The choices of an NNI space, in the order in which a policy decides them.

    Parameters
    ----------
    space
        A model space, or its ``simplify()``.

    Raises
    ------
    UserError
        If the space has a choice that is not categorical, or none at all.
    """
    mutables = dict(space.simplify() if hasattr(space, "simplify") else space)
    found: dict[str, Any] = {}
    for label, mutable in mutables.items():
        if isinstance(mutable, MutableAnnotation):
            continue
        if not isinstance(mutable, Categorical):
            raise UserError(
                f"choice '{label}' is a {type(mutable).__name__}; a policy decides categorical "
                "choices (nni.choice, LayerChoice, …) only"
            )
        found[label] = mutable
    if not found:
        raise UserError("the space has no choice that a policy could decide")
    stages = {label: _STAGE.fullmatch(label) for label in found}
    if not all(stages.values()):
        return [_choice(label, at, label, found[label]) for at, label in enumerate(found)]
    keyed = []
    for place, label in enumerate(found):
        match = stages[label]
        assert match is not None
        keyed.append((int(match[1]), _FIRST.get(match[2], 2), place, label, match[2]))
    numbers = sorted({stage for stage, *_ in keyed})
    return [
        _choice(label, numbers.index(stage), role, found[label])
        for stage, _, _, label, role in sorted(keyed)
    ]


def _choice(label: str, position: int, role: str, mutable: Any) -> Choice:
    pairs = list(zip(mutable.values, mutable.weights, strict=True))
    ordered = len(pairs) > 1 and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        for value in mutable.values
    )
    # A lone number is ordered too: in another task's space the same choice may have several.
    ordered = ordered or (
        len(pairs) == 1
        and isinstance(mutable.values[0], (int, float))
        and not isinstance(mutable.values[0], bool)
    )
    if ordered:
        pairs.sort(key=lambda pair: pair[0])
    return Choice(
        label,
        position,
        role,
        ordered,
        tuple(value for value, _ in pairs),
        tuple(float(weight) for _, weight in pairs),
    )


def levels_of(values: Sequence[float]) -> dict[int, Any]:
    """Which levels of an ordered head stand for which values; no value has two levels.

    Parameters
    ----------
    values
        The allowed values, increasing.

    Returns
    -------
    dict
        Index of the level, 0 for the keep ratio 1/16 to 15 for 1, to its value. Where every level
        in ``value = nearest to ratio * largest`` leaves a value out, levels go by rank instead; of
        more than 16 values some then have none.
    """
    largest = values[-1]
    nearest: dict[Any, list[int]] = {}
    for level in range(LEVELS):
        aim = (level + 1) / LEVELS * largest
        nearest.setdefault(_nearest(values, aim), []).append(level)
    if len(nearest) == len(values) and largest > 0:
        return dict(
            sorted(
                (min(levels, key=lambda k: abs((k + 1) / LEVELS - value / largest)), value)
                for value, levels in nearest.items()
            )
        )
    number = min(len(values), LEVELS)
    return {
        math.ceil((place + 1) * LEVELS / number) - 1: values[
            math.ceil((place + 1) * len(values) / number) - 1
        ]
        for place in range(number)
    }


def _nearest(values: Sequence[float], aim: float) -> float:
    """The nearest value; of two equally near ones the larger, as in ``floor(x + 0.5)``."""
    return min(values, key=lambda value: (abs(value - aim), -value))


def same_value(one: Any, other: Any) -> bool:
    """Whether two values are the same, JSON's lists and tuples alike."""
    plain = [list(v) if isinstance(v, (list, tuple)) else v for v in (one, other)]
    return bool(plain[0] == plain[1])


def values_key(sample: Mapping[str, Any], choices: Sequence[Choice]) -> tuple[str, ...]:
    """A hashable form of a sample."""
    return tuple(repr(sample[choice.label]) for choice in choices)


def restricted(sample: Sample, choices: Sequence[Choice]) -> Sample:
    """A sample in the space's own labels only."""
    return {choice.label: sample[choice.label] for choice in choices}
