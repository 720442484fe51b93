"""The three findings of RobNet's candidate study in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from nni_robust.analysis.budget import BudgetFinding, budget_finding
from nni_robust.analysis.density import DensityFinding, density_finding
from nni_robust.analysis.smoothness import FspFinding, fsp_finding
from nni_robust.analysis.study import StudyRow
from nni_robust.analysis.topology import Definition

__all__ = ["StudyFindings", "study_findings"]


@dataclasses.dataclass(frozen=True)
class StudyFindings:
    """What a study says about each finding.

    Parameters
    ----------
    n
        Candidates.
    density, budget, fsp
        Findings 1, 2 and 3.
    """

    n: int
    density: DensityFinding
    budget: BudgetFinding
    fsp: FspFinding

    @property
    def sentences(self) -> tuple[str, str, str]:
        """One plain sentence per finding."""
        return self.density.sentence, self.budget.sentence, self.fsp.sentence

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON; nothing in it is NaN."""
        return dataclasses.asdict(self)


def study_findings(
    rows: Sequence[StudyRow],
    *,
    buckets: int = 10,
    share: float = 0.3,
    definition: Definition = "convs",
    last: int | None = None,
    seed: int = 0,
) -> StudyFindings:
    """Test all three findings on a study.

    Parameters
    ----------
    rows
        The candidates; finding 3 uses those that have FSP distances.
    buckets, share
        See :func:`nni_robust.analysis.density_finding`.
    definition
        See :func:`nni_robust.analysis.budget_finding`.
    last
        See :func:`nni_robust.analysis.fsp_finding`.
    seed
        Of everything drawn.
    """
    return StudyFindings(
        n=len(rows),
        density=density_finding(rows, buckets=buckets, share=share, seed=seed),
        budget=budget_finding(rows, definition=definition, seed=seed),
        fsp=fsp_finding(rows, last=last, seed=seed),
    )
