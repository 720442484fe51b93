"""Finding 1 of RobNet: densely connected architectures are more robust.

Guo et al., "When NAS Meets Robustness", CVPR 2020 (arXiv 1911.10695), section 3.3, figures 4 and 5.

The paper's r = 0.88 is of bucket means: candidates of similar accuracy are averaged first. That
removes scatter, so it is larger than the correlation over candidates, which the verdict here goes
by; both are reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nni_robust.analysis._verdict import MINIMUM, Verdict, evidence, judge, predicate
from nni_robust.analysis.probe import LinearProbe, linear_probe
from nni_robust.analysis.statistics import Correlation, pearson, spearman
from nni_robust.analysis.study import StudyRow
from nni_robust.errors import UserError

__all__ = ["Bucket", "DensityFinding", "density_finding"]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Candidates of similar robust accuracy: their means, and how many they are."""

    robust: float
    density: float
    n: int


@dataclasses.dataclass(frozen=True)
class DensityFinding:
    """Is density correlated with robust accuracy?

    Parameters
    ----------
    n
        Candidates.
    pearson, spearman
        Over candidates.
    buckets
        Equally wide ranges of robust accuracy that hold candidates, lowest first (figure 5).
    bucket_pearson
        Over bucket means, comparable with the paper's 0.88.
    probe
        The linear probe over the bits (figure 4).
    verdict, sentence
        On the two correlations over candidates.
    """

    n: int
    pearson: Correlation
    spearman: Correlation
    buckets: tuple[Bucket, ...]
    bucket_pearson: Correlation
    probe: LinearProbe
    verdict: Verdict
    sentence: str


def density_finding(
    rows: Sequence[StudyRow], *, buckets: int = 10, share: float = 0.3, seed: int = 0
) -> DensityFinding:
    """Test finding 1 on a study.

    Parameters
    ----------
    rows
        The candidates.
    buckets
        Ranges of robust accuracy; the paper's figure has 49 for 1,000 candidates.
    share
        Part of the candidates that is the top, and the bottom, of the probe.
    seed
        Of bootstrap and probe.

    Raises
    ------
    UserError
        If a setting is out of range.
    """
    if buckets < 1:
        raise UserError(f"buckets: {buckets!r} is not allowed; at least 1 is")
    density = [row.topology.density for row in rows]
    robust = [row.robust for row in rows]
    both = (
        pearson(density, robust, minimum=MINIMUM, seed=seed),
        spearman(density, robust, minimum=MINIMUM, seed=seed),
    )
    means = _buckets(density, robust, buckets)
    verdict = judge(both)
    meaning = {
        "holds": "denser architectures are more robust",
        "does not hold": "denser architectures are less robust",
        "undecided": "no relation of density and robust accuracy is proven",
    }[verdict]
    return DensityFinding(
        n=len(rows),
        pearson=both[0],
        spearman=both[1],
        buckets=means,
        bucket_pearson=pearson([b.density for b in means], [b.robust for b in means], seed=seed),
        probe=linear_probe([row.topology.bits for row in rows], robust, share=share, seed=seed),
        verdict=verdict,
        sentence=(
            f"Finding 1 (density) {predicate(verdict)}: {meaning} "
            f"({evidence(both)}; n = {len(rows)})."
        ),
    )


def _buckets(density: Sequence[float], robust: Sequence[float], count: int) -> tuple[Bucket, ...]:
    if not robust:
        return ()
    x, y = np.asarray(density), np.asarray(robust)
    edges = np.histogram_bin_edges(y, count)
    number = np.clip(np.searchsorted(edges, y, side="right") - 1, 0, count - 1)
    return tuple(
        Bucket(float(y[inside].mean()), float(x[inside].mean()), int(inside.sum()))
        for inside in (number == k for k in range(count))
        if inside.any()
    )
