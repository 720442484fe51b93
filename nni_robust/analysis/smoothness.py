"""Finding 3 of RobNet: networks whose late cells an attack moves little lose little accuracy.

Guo et al., "When NAS Meets Robustness", CVPR 2020 (arXiv 1911.10695), section 3.5, figures 7 and 8:
over 50 cell-free candidates without fine-tuning, the FSP distance of a cell is correlated with the
gap between clean and robust accuracy, from about 0 in the first cells to 0.5 to 0.8 in the last ten
of twenty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nni_robust.analysis._verdict import MINIMUM, Verdict, evidence, judge, predicate
from nni_robust.analysis.rejection import last_cells
from nni_robust.analysis.statistics import Correlation, pearson, spearman
from nni_robust.analysis.study import StudyRow

__all__ = ["CellCorrelation", "FspFinding", "fsp_finding"]


@dataclasses.dataclass(frozen=True)
class CellCorrelation:
    """Correlation of an FSP distance with the gap between clean and robust accuracy.

    Parameters
    ----------
    name
        ``"cell 0"``, … or the range of cells whose distances are averaged.
    pearson, spearman
        Over candidates.
    """

    name: str
    pearson: Correlation
    spearman: Correlation


@dataclasses.dataclass(frozen=True)
class FspFinding:
    """Is the FSP distance of the late cells correlated with the accuracy that an attack costs?

    Parameters
    ----------
    n
        Candidates with FSP distances and a gap; all others are left out.
    cells
        One per cell, first cell first. These intervals are not corrected for their number: of 20
        cells without any relation one is expected to lie outside.
    early, late
        Of the mean distance over the first cells, and over the last `last` ones; None without data.
    last
        How many cells are late.
    verdict, sentence
        On `late`.
    """

    n: int
    cells: tuple[CellCorrelation, ...]
    early: CellCorrelation | None
    late: CellCorrelation | None
    last: int
    verdict: Verdict
    sentence: str


def fsp_finding(rows: Sequence[StudyRow], *, last: int | None = None, seed: int = 0) -> FspFinding:
    """Test finding 3 on a study.

    Parameters
    ----------
    rows
        The candidates.
    last
        Late cells; None is half of them (10 of 20 in the paper).
    seed
        Of the bootstrap.

    Raises
    ------
    UserError
        If there are fewer cells than `last`.
    ValueError
        If candidates have different numbers of cells.
    """
    known = [row for row in rows if row.fsp and row.gap is not None]
    if not known:
        sentence = (
            f"Finding 3 (FSP) {predicate('undecided')}: none of the {len(rows)} candidates has FSP "
            "distances and a clean accuracy."
        )
        return FspFinding(0, (), None, None, 0, "undecided", sentence)
    if len({len(row.fsp) for row in known}) != 1:
        raise ValueError("the candidates have FSP distances of different numbers of cells")
    distance = np.array([row.fsp for row in known])
    gap = np.array([row.gap for row in known], dtype=float)
    count = distance.shape[1]
    last = last_cells(count, last)

    def relate(first: int, stop: int) -> CellCorrelation:
        mean = distance[:, first:stop].mean(axis=1)
        return CellCorrelation(
            f"cell {first}" if stop == first + 1 else f"cells {first} to {stop - 1}",
            pearson(mean, gap, minimum=MINIMUM, seed=seed),
            spearman(mean, gap, minimum=MINIMUM, seed=seed),
        )

    late = relate(count - last, count)
    both = (late.pearson, late.spearman)
    verdict = judge(both)
    meaning = {
        "holds": "the more an attack moves the late cells, the more accuracy it costs",
        "does not hold": "the more an attack moves the late cells, the less accuracy it costs",
        "undecided": "no relation of the late cells' FSP distance and the accuracy gap is proven",
    }[verdict]
    return FspFinding(
        n=len(known),
        cells=tuple(relate(cell, cell + 1) for cell in range(count)),
        early=relate(0, count - last) if last < count else None,
        late=late,
        last=last,
        verdict=verdict,
        sentence=(
            f"Finding 3 (FSP) {predicate(verdict)}: {meaning} "
            f"({late.name}: {evidence(both)}; n = {len(known)})."
        ),
    )
