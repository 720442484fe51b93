"""When a finding counts as confirmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nni_robust.analysis.statistics import Correlation

__all__ = ["MINIMUM", "Verdict", "evidence", "judge", "predicate"]

Verdict = Literal["holds", "does not hold", "undecided"]

#: Candidates below which a finding gives no correlation at all.
MINIMUM = 10


def judge(correlations: Sequence[Correlation]) -> Verdict:
    """Verdict on "these correlations are positive".

    Returns
    -------
    str
        "holds" where all intervals lie above 0, "does not hold" where all lie below, else
        "undecided": an interval contains 0, or there is none.
    """
    directions = {correlation.direction for correlation in correlations}
    if directions == {"positive"}:
        return "holds"
    return "does not hold" if directions == {"negative"} else "undecided"


def evidence(correlations: Sequence[Correlation]) -> str:
    """The numbers behind a verdict: ``"Pearson 0.61 [0.40, 0.76], Spearman …"``."""
    known = [str(c) for c in correlations if c.value is not None]
    if known:
        return ", ".join(known)
    return str(correlations[0].reason)


def predicate(verdict: Verdict) -> str:
    """The verdict as the end of a sentence: "holds", "does not hold", "is undecided"."""
    return f"is {verdict}" if verdict == "undecided" else verdict
