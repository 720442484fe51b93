"""Reject candidates by their FSP distance, before they cost any fine-tuning.

RobNet (Guo et al., CVPR 2020, arXiv 1911.10695), section 3.5 and appendix F: of 300 cell-free
candidates those with a mean distance over the last ten cells above 0.006 are rejected; 68 remain.

Default here: keep the lowest 68/300, because an absolute threshold does not carry over. The scale
of the distance depends on the weights, and in the paper's own figures 96 % of the candidates lie
below 0.006.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from nni_robust.errors import UserError

__all__ = ["KEEP", "Rejection", "last_cells", "reject_by_fsp"]

#: Share of the candidates that survived in the paper.
KEEP = 68 / 300


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Who stays.

    Parameters
    ----------
    kept, rejected
        Positions in the list of candidates, ascending.
    scores
        Distance of each candidate over the late cells.
    threshold
        Largest score that stays; None if nobody does.
    """

    kept: tuple[int, ...]
    rejected: tuple[int, ...]
    scores: tuple[float, ...]
    threshold: float | None


def reject_by_fsp(
    distances: Sequence[Sequence[float]],
    *,
    keep: float | None = None,
    threshold: float | None = None,
    last: int | None = None,
    pool: Literal["mean", "sum"] = "mean",
) -> Rejection:
    """Choose the candidates with the smallest FSP distance.

    Parameters
    ----------
    distances
        (N, L): one row per candidate, one distance per cell.
    keep
        Share that stays, in (0, 1]: exactly round(keep * N) candidates, at least one; of equal
        scores the earlier candidates stay. Default :data:`KEEP`.
    threshold
        Instead of `keep`: scores above it are rejected, be it all.
    last
        Late cells that count; None is half of them.
    pool
        ``"mean"`` or ``"sum"`` over the late cells; without an absolute threshold it makes no
        difference.

    Returns
    -------
    Rejection
        Empty without candidates.

    Raises
    ------
    UserError
        If a setting is out of range, or both `keep` and `threshold` are given.
    ValueError
        If rows have different lengths, are empty, or hold numbers that are not finite.
    """
    if keep is not None and threshold is not None:
        raise UserError("keep and threshold exclude each other; give one of them")
    share = KEEP if keep is None else keep
    if not 0 < share <= 1:
        raise UserError(f"keep: {keep!r} is not allowed; above 0 and up to 1 is")
    if pool not in ("mean", "sum"):
        raise UserError(f"pool: {pool!r} is not allowed; allowed: mean, sum")
    if not distances:
        return Rejection((), (), (), None)
    lengths = {len(row) for row in distances}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"rows of {sorted(lengths)} distances; the same number, at least 1, is needed"
        )
    table = np.asarray(distances, dtype=float)
    if not np.isfinite(table).all():
        raise ValueError("FSP distances must be finite numbers")
    late = table[:, -last_cells(table.shape[1], last) :]
    scores = late.mean(axis=1) if pool == "mean" else late.sum(axis=1)
    if threshold is None:
        count = max(1, round(share * len(scores)))
        kept = np.sort(np.argsort(scores, kind="stable")[:count])
    else:
        kept = np.flatnonzero(scores <= threshold)
    stays = set(kept.tolist())
    return Rejection(
        kept=tuple(kept.tolist()),
        rejected=tuple(i for i in range(len(scores)) if i not in stays),
        scores=tuple(scores.tolist()),
        threshold=float(scores[kept].max()) if len(kept) else None,
    )


def last_cells(cells: int, last: int | None) -> int:
    """How many cells are late: `last`, or half of them (at least one).

    Raises
    ------
    UserError
        If there are fewer.
    """
    if last is None:
        return max(1, cells // 2)
    if not 1 <= last <= cells:
        raise UserError(f"last: {last!r} is not allowed; 1 to {cells} (the cells) is")
    return last
