"""Expected cost of a space under weights of its choices, differentiable in the weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nni_robust.cost import Cost, measure_cost
from nni_robust.relaxation._draw import most_likely

__all__ = ["ExpectedCost", "Measured"]

_NAMES = ("macs", "params")

#: Random samples by which a space's cost is recognised as a sum over its choices.
_PROBES = 16


class ExpectedCost:
    """Of a space with ``cost(sample, input_shape)``, or of one that is measured.

    The cost of the most likely sample, plus, for every value of every choice, its weight times what
    this one change costs. That is the expectation where the cost is a sum over the choices; such a
    space is recognised by random samples and needs the changes only once. Elsewhere it is an
    approximation near the most likely sample: exact where the weights are 0 or 1, but changes of
    two choices together count as the sum of both. For a space that is measured, which is slow, the
    changes are those of its first sample.

    Parameters
    ----------
    space
        The space.
    choices
        Label to values.
    """

    def __init__(self, space: Any, choices: Mapping[str, Sequence[Any]]) -> None:
        self.space, self.choices = space, choices
        self._slow = isinstance(space, Measured)
        self._cost = functools.lru_cache(maxsize=4096)(self._ask)
        self._changes = functools.lru_cache(maxsize=64)(self._measure_changes)
        self._additive = functools.lru_cache(maxsize=8)(self._is_additive)

    def __call__(
        self, weights: Mapping[str, Tensor], input_shape: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """``macs`` and ``params``, float64 scalars."""
        likely = most_likely(self.choices, weights)
        base = tuple(list(values).index(likely[label]) for label, values in self.choices.items())
        once = self._slow or self._additive(input_shape)
        changes = self._changes((0,) * len(base) if once else base, input_shape)
        origin = self._cost(base, input_shape) - changes[self._starts() + base].sum(0)
        device = next(iter(weights.values())).device
        # All weights in a row, so that it takes one product.
        row = torch.cat([weights[label].double() for label in self.choices])
        total = row @ torch.as_tensor(changes, device=device)
        return {name: total[i] + float(origin[i]) for i, name in enumerate(_NAMES)}

    def _starts(self) -> np.ndarray:
        """Where each choice's values begin in a row of all."""
        return np.cumsum([0, *(len(values) for values in self.choices.values())])[:-1]

    def _ask(self, indices: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        sample = {
            label: values[index]
            for index, (label, values) in zip(indices, self.choices.items(), strict=True)
        }
        cost = self.space.cost(sample, shape)
        return np.array([getattr(cost, name) for name in _NAMES], dtype=np.float64)

    def _measure_changes(self, base: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """What every single change of a sample costs, (values of all choices, 2)."""
        origin = self._cost(base, shape)
        return np.stack(
            [
                self._cost((*base[:position], index, *base[position + 1 :]), shape) - origin
                for position, values in enumerate(self.choices.values())
                for index in range(len(values))
            ]
        )

    def _is_additive(self, shape: tuple[int, ...]) -> bool:
        sizes = [len(values) for values in self.choices.values()]
        first = (0,) * len(sizes)
        origin, changes = self._cost(first, shape), self._changes(first, shape)
        random = np.random.RandomState(0)
        for _ in range(_PROBES):
            indices = tuple(int(random.randint(size)) for size in sizes)
            expected = origin + changes[self._starts() + indices].sum(0)
            if not np.array_equal(expected, self._cost(indices, shape)):
                return False
        return True


class Measured:
    """``cost(sample, input_shape)`` of a space that has none: its networks are run on nothing.

    NNI's profiler has expressions of the choices, but fails at modules that it has no formula for
    (``nn.Tanh`` among them, nni 3.0), and takes minutes for spaces as large as its hub's.

    Parameters
    ----------
    space
        A copy of the space, before it becomes a supernet; it goes to the meta device.
    """

    def __init__(self, space: Any) -> None:
        self.space = space.to("meta")

    def cost(self, sample: Mapping[str, Any], input_shape: tuple[int, ...]) -> Cost:
        """Parameters and MACs of a sample's network for one picture."""
        with torch.device("meta"):
            return measure_cost(self.space.freeze(dict(sample)).to("meta"), input_shape)
