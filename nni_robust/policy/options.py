"""What a task leaves to decide: masks for duplicates, teachers, budgets, and draws that keep them.

Choices are decided one after the other. A value is masked where even the cheapest completion of the
decisions before it costs more than the budget allows, so no draw is wasted and none is too dear.
The cheapest completion has the least value of every ordered choice still open, and the best
combination of the unordered ones. That is right where a smaller number never costs more; it is
tried out when the options are made, and where it is wrong, only the last decision is masked and
whole draws are rejected. The finished sample is checked exactly in either case.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nni_robust.cost import Cost
from nni_robust.errors import UserError
from nni_robust.policy.choices import Choice, levels_of, same_value, values_key
from nni_robust.sampling import Sample
from nni_robust.task import Budget

__all__ = ["Draw", "Options"]

Mask = NDArray[np.bool_]

#: Combinations of open unordered choices that are tried for the cheapest completion.
_COMBINATIONS = 64
#: Draws that test whether smaller numbers cost less.
_PROBES = 32
_PATIENCE = 1000


@dataclasses.dataclass(frozen=True)
class Draw:
    """One decision on a whole network.

    Parameters
    ----------
    sample
        The network.
    indices
        (choices,) index of the chosen logit of each head.
    mask
        (choices, width) which logits were allowed when it was drawn; `width` is that of the widest
        head.
    """

    sample: Sample
    indices: NDArray[np.int64]
    mask: Mask


class Options:
    """The networks that a task allows, and how to draw them from logits.

    Parameters
    ----------
    choices
        Of the space, in order.
    cost
        Exact cost of a sample; None where there is no budget.
    budget
        What it may cost, tolerance included.
    teacher
        A sample none of whose numbers is to be exceeded; None is the space's largest.
    minimum
        Least value by role or label, such as ``{"depth": 2}``.
    changed
        Whether a network equal to `teacher` is refused.
    contains
        Further constraints of the space.
    closed_form
        Whether `cost` is cheap enough to be asked for completions.

    Attributes
    ----------
    values
        For each choice the index of a logit to its value, as far as allowed.
    largest
        The allowed sample of the largest numbers and the first of unordered values.
    teacher
        The same with the teacher's values, which the space need not have.

    Raises
    ------
    UserError
        If nothing is left to choose.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        cost: Callable[[Sample], Cost] | None = None,
        budget: Budget | None = None,
        teacher: Mapping[str, Any] | None = None,
        minimum: Mapping[str, float] | None = None,
        changed: bool = False,
        contains: Callable[[Sample], bool] | None = None,
        closed_form: bool = True,
    ) -> None:
        self.choices, self.budget, self.contains = list(choices), budget, contains
        self.closed_form = closed_form
        self._cost = cost
        self._costs: dict[tuple[str, ...], Cost] = {}
        self.width = max(choice.size for choice in self.choices)
        self.values = self._allowed(teacher or {}, minimum or {})
        self.largest = self._largest()
        self.teacher: Sample = {
            label: (teacher or {}).get(label, value) for label, value in self.largest.items()
        }
        self.changed = changed
        self._masks: dict[tuple[Any, ...], Mask] = {}
        self.sequential = budget is not None and closed_form and self._monotone()
        if budget is not None and self.sequential and not self._feasible([], self.values):
            raise UserError(
                "no network of the space keeps the task's budget: the smallest exceeds it "
                f"{budget.excess(self.cost(self._cheapest([], self.values))):.3g}-fold"
            )

    def cost(self, sample: Mapping[str, Any]) -> Cost:
        """Exact cost of a sample, remembered.

        Raises
        ------
        UserError
            If these options know no costs.
        """
        if self._cost is None:
            raise UserError("the space's networks have no known cost")
        key = values_key(sample, self.choices)
        if key not in self._costs:
            self._costs[key] = self._cost(dict(sample))
        return self._costs[key]

    @property
    def has_cost(self) -> bool:
        """Whether :meth:`cost` works."""
        return self._cost is not None

    def count(self) -> int:
        """Number of samples, budget and constraints aside."""
        number = 1
        for allowed in self.values:
            number *= len(allowed)
        return number

    def draw(
        self,
        logits: Sequence[NDArray[np.float64]],
        rng: np.random.Generator,
        *,
        current: Mapping[str, Any] | None = None,
        final: bool = True,
    ) -> Draw:
        """Draw one network.

        Parameters
        ----------
        logits
            One array per choice, as wide as its head.
        rng
            Source of randomness.
        current
            Numbers may not exceed those of this sample (a longer episode only shrinks).
        final
            Whether the network is to be evaluated; one on the way may be the teacher, or too dear.

        Raises
        ------
        UserError
            If no allowed network can be found.
        """
        values = self.values if current is None else self._below(current)
        for _ in range(_PATIENCE):
            draw = self._attempt(logits, rng, values, current, final)
            if draw is not None:
                return draw
        raise UserError(
            f"no network that keeps the task's budget and bounds in {_PATIENCE} draws; a larger "
            "budget is needed"
        )

    def indices_of(self, sample: Mapping[str, Any]) -> NDArray[np.int64] | None:
        """Indices of the logits that stand for a sample; None where one has none."""
        found = []
        for choice, allowed in zip(self.choices, self.values, strict=True):
            value = sample[choice.label]
            index = next((i for i, v in allowed.items() if same_value(v, value)), None)
            if index is None:
                return None
            found.append(index)
        return np.array(found, dtype=np.int64)

    def _allowed(
        self, teacher: Mapping[str, Any], minimum: Mapping[str, float]
    ) -> list[dict[int, Any]]:
        """Index of a logit to its value, for each choice."""
        known = {choice.label for choice in self.choices} | {c.role for c in self.choices}
        for name in minimum:
            if name not in known:
                raise UserError(
                    f"strategy.minimum: '{name}' is no choice of the space (allowed: "
                    f"{', '.join(sorted(known))})"
                )
        result = []
        for choice in self.choices:
            if not choice.ordered:
                result.append(dict(enumerate(choice.values)))
                continue
            least = minimum.get(choice.label, minimum.get(choice.role))
            most = teacher.get(choice.label)
            # Levels are shares of the teacher, so that a bound from below moves none of them.
            below = [v for v in choice.values if most is None or v <= most]
            levels = levels_of(below) if below else {}
            kept = {i: v for i, v in levels.items() if least is None or v >= least}
            if not kept:
                raise UserError(
                    f"no value of '{choice.label}' is left: the space has "
                    f"{', '.join(map(str, choice.values))}"
                    + (f", the teacher {most}" if most is not None else "")
                    + (f", the least allowed is {least}" if least is not None else "")
                )
            result.append(kept)
        return result

    def _largest(self) -> Sample:
        """The largest number of every ordered choice, the first value of every other."""
        return {
            choice.label: max(allowed.values()) if choice.ordered else next(iter(allowed.values()))
            for choice, allowed in zip(self.choices, self.values, strict=True)
        }

    def _below(self, current: Mapping[str, Any]) -> list[dict[int, Any]]:
        values = []
        for choice, allowed in zip(self.choices, self.values, strict=True):
            limit = current[choice.label]
            kept = {i: v for i, v in allowed.items() if not choice.ordered or v <= limit}
            values.append(kept or allowed)
        return values

    def _attempt(
        self,
        logits: Sequence[NDArray[np.float64]],
        rng: np.random.Generator,
        values: list[dict[int, Any]],
        current: Mapping[str, Any] | None,
        final: bool,
    ) -> Draw | None:
        """One try; None where it ended in something that is not allowed."""
        mask = np.zeros((len(self.choices), self.width), dtype=bool)
        chosen: list[int] = []
        numbers = rng.random(len(self.choices))
        limits = None if current is None else values_key(current, self.choices)
        for place, allowed in enumerate(values):
            open_ = self._mask(chosen, allowed, values, limits, final)
            if not open_.any():
                return None
            mask[place, : len(open_)] = open_
            weights = np.where(open_, np.exp(logits[place] - logits[place][open_].max()), 0.0)
            total = np.cumsum(weights)
            chosen.append(int(np.searchsorted(total, numbers[place] * total[-1], side="right")))
        sample = self._sample(chosen, values)
        if not final:
            return Draw(sample, np.array(chosen, dtype=np.int64), mask)
        if self.changed and all(
            same_value(sample[label], value) for label, value in self.teacher.items()
        ):
            return None
        if self.budget is not None and not self.budget.allows(self.cost(sample)):
            return None
        if self.contains is not None and not self.contains(sample):
            return None
        return Draw(sample, np.array(chosen, dtype=np.int64), mask)

    def _sample(self, chosen: Sequence[int], values: Sequence[dict[int, Any]]) -> Sample:
        return {
            choice.label: allowed[index]
            for choice, allowed, index in zip(self.choices, values, chosen, strict=True)
        }

    def _mask(
        self,
        chosen: list[int],
        allowed: dict[int, Any],
        values: list[dict[int, Any]],
        limits: tuple[str, ...] | None,
        final: bool,
    ) -> Mask:
        """Which logits of the next head are open."""
        place = len(chosen)
        last = place == len(self.choices) - 1
        masked = self.sequential or (last and self.closed_form)
        if self.budget is None or not final or not masked:
            open_ = np.zeros(self.choices[place].size, dtype=bool)
            open_[list(allowed)] = True
            return open_
        key = (limits, *chosen)
        if key not in self._masks:
            open_ = np.zeros(self.choices[place].size, dtype=bool)
            if self.sequential and self.choices[place].ordered:
                # What is too dear at one number is so at every larger one.
                low, order = 0, sorted(allowed, key=lambda index: allowed[index])
                high = len(order)
                while low < high:
                    middle = (low + high) // 2
                    if self._feasible([*chosen, order[middle]], values):
                        low = middle + 1
                    else:
                        high = middle
                open_[order[:low]] = True
            else:
                open_[[i for i in allowed if self._feasible([*chosen, i], values)]] = True
            self._masks[key] = open_
        return self._masks[key]

    def _feasible(self, chosen: list[int], values: list[dict[int, Any]]) -> bool:
        assert self.budget is not None
        return any(
            self.budget.allows(self.cost(sample)) for sample in self._completions(chosen, values)
        )

    def _cheapest(self, chosen: list[int], values: list[dict[int, Any]]) -> Sample:
        assert self.budget is not None
        budget = self.budget
        return min(
            self._completions(chosen, values), key=lambda sample: budget.excess(self.cost(sample))
        )

    def _completions(self, chosen: list[int], values: list[dict[int, Any]]) -> Any:
        """Samples of which one is the cheapest that begins with these decisions."""
        rest: list[list[int]] = []
        for choice, allowed in zip(self.choices[len(chosen) :], values[len(chosen) :], strict=True):
            smallest = min(allowed, key=lambda i: allowed[i]) if choice.ordered else None
            rest.append(list(allowed) if smallest is None else [smallest])
        for combination in itertools.product(*rest):
            yield self._sample([*chosen, *combination], values)

    def _monotone(self) -> bool:
        """Whether smaller numbers never cost more, as far as probes can tell."""
        combinations = 1
        for choice, allowed in zip(self.choices, self.values, strict=True):
            combinations *= 1 if choice.ordered else len(allowed)
        if combinations > _COMBINATIONS:
            return False
        rng = np.random.default_rng(0)
        for _ in range(_PROBES):
            chosen = [int(rng.choice(list(allowed))) for allowed in self.values]
            cost = self.cost(self._sample(chosen, self.values))
            for place, choice in enumerate(self.choices):
                if not choice.ordered:
                    continue
                order = sorted(self.values[place], key=lambda i: self.values[place][i])
                at = order.index(chosen[place])
                if at == 0:
                    continue
                less = [*chosen[:place], order[at - 1], *chosen[place + 1 :]]
                lower = self.cost(self._sample(less, self.values))
                if lower.macs > cost.macs or lower.params > cost.params:
                    return False
        return True
