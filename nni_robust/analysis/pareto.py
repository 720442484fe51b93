"""Pareto fronts: the candidates that no other candidate beats in every respect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["pareto_front"]

Direction = Literal["max", "min"]


def pareto_front(points: ArrayLike, directions: Sequence[Direction]) -> list[int]:
    """Find the points that are not dominated.

    A point dominates another when it is at least as good in every objective and better in one.
    Equal points do not dominate each other: all copies of a point on the front are on it.

    Parameters
    ----------
    points
        (N, K) numbers, one row per candidate. A row with a NaN is never on the front and dominates
        nothing; infinities are compared as numbers.
    directions
        K times ``"max"`` or ``"min"``: what counts as better in each column.

    Returns
    -------
    list of int
        Row numbers of the front, ascending; empty for no points.

    Raises
    ------
    ValueError
        If the shape and `directions` do not fit or a direction has another name.

    Notes
    -----
    O(N log N) for one or two objectives, O(N F) with F points on the front for more.

    Examples
    --------
    >>> pareto_front([(10, 0.5), (20, 0.6), (30, 0.55)], ("min", "max"))
    [0, 1]
    """
    unknown = [d for d in directions if d not in ("max", "min")]
    if unknown or not directions:
        raise ValueError(
            f"directions must be 'max' or 'min', one per objective; got {directions!r}"
        )
    values = np.asarray(points, dtype=float)
    if values.size == 0:
        return []
    if values.ndim != 2 or values.shape[1] != len(directions):
        raise ValueError(
            f"points of shape {values.shape} do not fit {len(directions)} directions; (N, K) does"
        )
    gain = values * np.array([1.0 if d == "max" else -1.0 for d in directions])
    rows = np.flatnonzero(~np.isnan(gain).any(axis=1))
    # Best first: after this sort a point can be dominated only by one that stands before it.
    rows = rows[np.lexsort(-gain[rows, ::-1].T)]
    kept = _sweep(gain[rows]) if len(directions) <= 2 else _cull(gain[rows])
    return sorted(int(row) for row in rows[kept])


def _sweep(gain: NDArray[np.float64]) -> list[int]:
    """Front of rows sorted best first, one or two objectives, all to be maximised."""
    last = gain[:, -1]
    kept: list[int] = []
    for i in range(len(gain)):
        if not kept or last[i] > last[kept[-1]] or (gain[i] == gain[kept[-1]]).all():
            kept.append(i)
    return kept


def _cull(gain: NDArray[np.float64]) -> list[int]:
    """Front of rows sorted best first, any number of objectives, all to be maximised."""
    kept: list[int] = []
    for i, row in enumerate(gain):
        front = gain[kept]
        if not ((front >= row).all(axis=1) & (front > row).any(axis=1)).any():
            kept.append(i)
    return kept
