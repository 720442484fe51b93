"""Finding 2 of RobNet: under a small budget, convolutions belong on direct edges.

Guo et al., "When NAS Meets Robustness", CVPR 2020 (arXiv 1911.10695), section 3.4 and figure 6(b).

The budget is the number of convolutions of a cell. The paper writes small "< 7", medium 8 to 10,
large "> 11", but its figure shows 7 and 11 and RobNet-small has 7, so small is up to 7 and large
from 11 on. Figure 6(b) divides direct convolutions by all convolutions; the selection rule of the
appendix only makes sense by direct edges. Both are computed; within a group, the share of direct
edges also grows with the number of convolutions itself, so the figure's share decides.

The claim is about small and medium; for large the paper calls the relation weak, and it takes no
part in the verdict. The paper's r (0.90, 0.67, 0.60) are of bucket means, ours of candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from nni_robust.analysis._verdict import MINIMUM, Verdict, evidence, judge, predicate
from nni_robust.analysis.statistics import Correlation, pearson, spearman
from nni_robust.analysis.study import StudyRow
from nni_robust.analysis.topology import Definition, Topology, check_definition

__all__ = ["BUDGETS", "Budget", "BudgetFinding", "BudgetGroup", "budget_finding", "budget_of"]

Budget = Literal["small", "medium", "large"]

#: Names of the groups and the convolutions per cell that they hold.
BUDGETS: dict[Budget, str] = {"small": "≤ 7", "medium": "8–10", "large": "≥ 11"}


def budget_of(topology: Topology) -> Budget:
    """Group of an architecture; the convolutions of a cell-free one are averaged over its cells
    and rounded."""
    if topology.convs_per_cell < 7.5:
        return "small"
    return "medium" if topology.convs_per_cell < 10.5 else "large"


@dataclasses.dataclass(frozen=True)
class BudgetGroup:
    """Candidates of similar budget.

    Parameters
    ----------
    budget
        Which group.
    n
        Its candidates.
    pearson, spearman
        Of the share of direct convolutions with robust accuracy, under each definition, see
        :meth:`nni_robust.analysis.Topology.direct_share`.
    verdict
        On the deciding definition.
    """

    budget: Budget
    n: int
    pearson: dict[Definition, Correlation]
    spearman: dict[Definition, Correlation]
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class BudgetFinding:
    """Is the share of direct convolutions correlated with robust accuracy where budgets are small?

    Parameters
    ----------
    n
        Candidates.
    groups
        Small, medium and large.
    definition
        The definition that the verdicts go by.
    verdict, sentence
        On small and medium: "holds" only if it holds in both, "does not hold" if it fails in one
        and holds in none.
    """

    n: int
    groups: tuple[BudgetGroup, ...]
    definition: Definition
    verdict: Verdict
    sentence: str


def budget_finding(
    rows: Sequence[StudyRow], *, definition: Definition = "convs", seed: int = 0
) -> BudgetFinding:
    """Test finding 2 on a study.

    Parameters
    ----------
    rows
        The candidates.
    definition
        What decides: direct convolutions by all convolutions (``"convs"``) or by direct edges.
    seed
        Of the bootstrap.

    Raises
    ------
    UserError
        If there is no such definition.
    """
    check_definition(definition)
    groups = tuple(
        _group(budget, [row for row in rows if budget_of(row.topology) == budget], definition, seed)
        for budget in BUDGETS
    )
    verdict = _combine([group.verdict for group in groups if group.budget != "large"])
    meaning = {
        "holds": "with few convolutions, those on direct edges give more robustness",
        "does not hold": "with few convolutions, those on direct edges give less robustness",
        "undecided": "no advantage of direct edges is proven for small and medium budgets",
    }[verdict]
    numbers = "; ".join(
        f"{g.budget}: {evidence([g.pearson[definition], g.spearman[definition]])}, n = {g.n}"
        for g in groups
    )
    return BudgetFinding(
        n=len(rows),
        groups=groups,
        definition=definition,
        verdict=verdict,
        sentence=f"Finding 2 (budget) {predicate(verdict)}: {meaning} ({numbers}).",
    )


def _combine(verdicts: Sequence[Verdict]) -> Verdict:
    if set(verdicts) == {"holds"}:
        return "holds"
    failed = "does not hold" in verdicts and "holds" not in verdicts
    return "does not hold" if failed else "undecided"


def _group(
    budget: Budget, rows: Sequence[StudyRow], definition: Definition, seed: int
) -> BudgetGroup:
    robust = [row.robust for row in rows]
    linear: dict[Definition, Correlation] = {}
    ranks: dict[Definition, Correlation] = {}
    definitions: tuple[Definition, ...] = get_args(Definition)
    for each in definitions:
        share = [row.topology.direct_share(each) for row in rows]
        linear[each] = pearson(share, robust, minimum=MINIMUM, seed=seed)
        ranks[each] = spearman(share, robust, minimum=MINIMUM, seed=seed)
    return BudgetGroup(
        budget, len(rows), linear, ranks, judge([linear[definition], ranks[definition]])
    )
