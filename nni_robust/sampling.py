"""Drawing architectures from any NNI model space.

A choice may have a prior (NNI's ``Categorical(values, weights=…)``): RobNet keeps each operation
with probability 0.7, for example. Draws follow it unless they are asked to be uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from nni.mutable import Categorical, MutableAnnotation

from nni_robust.errors import UserError
from nni_robust.store import content_key

__all__ = ["draw", "draw_distinct"]

Sample = dict[str, Any]


def draw(
    mutables: Mapping[str, Any],
    rng: np.random.RandomState,
    *,
    uniform: bool = False,
) -> Sample:
    """Draw one sample.

    Parameters
    ----------
    mutables
        A space's ``simplify()``: label to choice.
    rng
        Source of randomness (NNI's own kind).
    uniform
        Leave the priors of the choices out.
    """
    sample: Sample = {}
    for label, mutable in mutables.items():
        if isinstance(mutable, MutableAnnotation):
            continue
        if uniform and isinstance(mutable, Categorical):
            sample[label] = mutable.values[int(rng.randint(len(mutable.values)))]
        else:
            sample[label] = mutable.random({}, rng)
    return sample


def draw_distinct(
    number: int,
    mutables: Mapping[str, Any],
    rng: np.random.RandomState,
    *,
    uniform: bool = False,
    accept: Callable[[Sample], bool] | None = None,
    exclude: list[Sample] | None = None,
    patience: int = 2000,
    fewer: bool = False,
) -> list[Sample]:
    """Draw `number` different samples that keep the space's constraints and `accept`.

    Parameters
    ----------
    number
        How many.
    mutables, rng, uniform
        See :func:`draw`.
    accept
        Rule that a sample has to keep, such as a budget.
    exclude
        Samples that must not come again.
    patience
        Draws in a row without a new sample after which the rule counts as impossible.
    fewer
        Return what was found by then, maybe nothing, instead of an error.

    Raises
    ------
    UserError
        If fewer than `number` can be found, and not `fewer`.
    """
    known = {content_key(s) for s in exclude or []}
    found: list[Sample] = []
    misses = 0
    while len(found) < number:
        sample = draw(mutables, rng, uniform=uniform)
        key = content_key(sample)
        keeps = all(m.check_contains(sample) is None for m in mutables.values())
        if keeps and key not in known and (accept is None or accept(sample)):
            known.add(key)
            found.append(sample)
            misses = 0
        else:
            misses += 1
            if misses >= patience and fewer:
                return found
            if misses >= patience:
                raise UserError(
                    f"only {len(found)} of {number} candidates can be found: {patience} draws "
                    "in a row gave no "
                    "new one that the space and the bounds (strategy.require) allow"
                )
    return found
