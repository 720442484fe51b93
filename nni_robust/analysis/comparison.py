"""Which strategy finds better networks with the same number of evaluations?

One run is one search with one seed. Per strategy: the best score so far after every evaluation
(mean and standard deviation over seeds), the best at the end, and how many evaluations a run needs
to reach the level that the reference strategy (random search) reaches on average at its end. Runs
that never reach it are counted as such and are not left out of the median.

Equal effort is enforced, not assumed: an evaluation is a *distinct* architecture (asking again
gives the same answer and teaches nothing), and a candidate that failed has cost one. The reference
sets the number: runs that evaluated more are cut there; a run that ended earlier, by its own
choice, keeps the best that it had. Evaluations for other tasks (meta-training) are no part of it;
they are counted separately.

Differences are paired by seed where both strategies have the same seeds, with a bootstrap interval
of the mean; otherwise means of independent runs are compared.
An interval that contains 0 decides nothing, and the sentences say so. Unreliable results are not
left out, which would compare other runs for each strategy; they are counted and told.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nni_robust.analysis._comparison_text import sentences
from nni_robust.analysis._search_curve import SearchCurve, best_possible, read_curve
from nni_robust.errors import UserError, nearest
from nni_robust.flags import merge_flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Comparison",
    "Difference",
    "SearchCurve",
    "StrategyResult",
    "compare_runs",
    "read_curve",
]

Floats = NDArray[np.float64]

_RESAMPLES = 4000
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference of the best score at the end to the reference, with its interval.

    Parameters
    ----------
    mean, low, high
        Of the difference, as shares; the interval covers 95 %.
    n
        Pairs, or runs of the smaller group.
    paired
        Whether runs of the same seed were subtracted from each other.
    """

    mean: float
    low: float
    high: float
    n: int
    paired: bool

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"``, or ``"undecided"`` where the interval contains 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


@dataclasses.dataclass(frozen=True)
class StrategyResult:
    """A strategy over its seeds.

    Parameters
    ----------
    label
        Its name in the comparison.
    runs
        Searches.
    mean, sd
        Of the best score at the end; the standard deviation is over runs (0 of a single one).
    reached
        Median of the evaluations that a run needs to reach the reference's mean; None where half of
        the runs or more do not reach it.
    missed
        Runs that never reach it.
    difference
        To the reference; None of the reference itself.
    test
        Column of the test split to mean and standard deviation over runs of the best network's
        value.
    used
        Mean number of distinct architectures that a run evaluated, at most those compared.
    repeated, elsewhere
        Mean evaluations of a run that were repetitions, or for other tasks and references.
    curve_mean, curve_sd
        Best so far after each evaluation.
    unreliable, test_unreliable
        Runs whose best network failed a check, in the search and on the test split.
    failed
        Names of those checks.
    """

    label: str
    runs: int
    mean: float
    sd: float
    reached: float | None
    missed: int
    difference: Difference | None
    test: dict[str, tuple[float, float]]
    used: float
    repeated: float
    elsewhere: float
    curve_mean: tuple[float, ...]
    curve_sd: tuple[float, ...]
    unreliable: int = 0
    test_unreliable: int = 0
    failed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What :func:`compare_runs` found.

    Parameters
    ----------
    against
        Label of the reference.
    score
        Metric that was maximised.
    evaluations
        Distinct architectures per run at which they are compared: those of the reference.
    optimum
        Best score that a search could have found, where a table tells; else None.
    results
        One per strategy, in the given order.
    sentences
        The findings in plain words.
    """

    against: str
    score: str
    evaluations: int
    optimum: float | None
    results: tuple[StrategyResult, ...]
    sentences: tuple[str, ...]

    def __getitem__(self, label: str) -> StrategyResult:
        return next(result for result in self.results if result.label == label)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        found = dataclasses.asdict(self)
        for row, result in zip(found["results"], self.results, strict=True):
            if result.difference is not None:
                row["difference"]["verdict"] = result.difference.verdict
            for curve in ("curve_mean", "curve_sd"):
                row[curve] = [None if np.isnan(v) else round(v, 6) for v in row[curve]]
        return dict(json.loads(json.dumps(found)))

    def to_csv(self) -> str:
        """One line per strategy."""
        tests = list(dict.fromkeys(c for result in self.results for c in result.test))
        columns = [
            "strategy", "runs", "evaluations", "best mean", "best sd", "difference",
            "difference low", "difference high", "verdict", "evaluations to reference",
            "runs that never reach it", "used evaluations", "repeated evaluations",
            "other evaluations", "unreliable runs", "test unreliable runs",
        ]  # fmt: skip
        columns += [f"test {column} {what}" for column in tests for what in ("mean", "sd")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for r in self.results:
            d = r.difference
            compared = [d.mean, d.low, d.high, d.verdict] if d else ["", "", "", "reference"]
            row = [r.label, r.runs, self.evaluations, r.mean, r.sd, *compared]
            row += [
                "" if r.reached is None else r.reached,
                r.missed,
                r.used,
                r.repeated,
                r.elsewhere,
                r.unreliable,
                r.test_unreliable,
            ]
            row += [value for column in tests for value in r.test.get(column, ("", ""))]
            writer.writerow([round(v, 6) if isinstance(v, float) else v for v in row])
        return text.getvalue()

    def figure(self) -> Figure:
        """Best-so-far curves and the best at the end."""
        from nni_robust.report._comparison import plot_comparison

        return plot_comparison(self)


def compare_runs(
    runs: Mapping[str, Sequence[str | Path]], against: str, score: str = "default"
) -> Comparison:
    """Compare the searches of several strategies on one task.

    Parameters
    ----------
    runs
        Label of a strategy to the folders of its runs, one per seed.
    against
        Label of the reference, such as random search.
    score
        Metric of the candidates that was maximised.

    Raises
    ------
    UserError
        If the reference is missing, a strategy has no runs, or a run has no candidate with that
        metric.
    """
    curves = {label: [read_curve(folder, score) for folder in runs[label]] for label in runs}
    optimum = best_possible(next(iter(runs.values()))) if score == "default" else None
    return compare_curves(curves, against, score, optimum)


def compare_curves(
    curves: Mapping[str, Sequence[SearchCurve]],
    against: str,
    score: str = "default",
    optimum: float | None = None,
) -> Comparison:
    """As :func:`compare_runs`, with searches that were read already."""
    if against not in curves:
        raise UserError(
            f"compare.against: there is no strategy '{against}'{nearest(against, curves)} (there "
            f"are: {', '.join(curves)})"
        )
    for label, found in curves.items():
        if not found:
            raise UserError(f"strategy '{label}' has no finished run to compare")
    length = min(len(curve.scores) for curve in curves[against])
    reference = [float(c.best_so_far(length)[-1]) for c in curves[against]]
    level = statistics.fmean(reference)
    results = tuple(
        _result(label, found, curves[against] if label != against else None, level, length)
        for label, found in curves.items()
    )
    lengths = {label: max(len(c.scores) for c in found) for label, found in curves.items()}
    text = sentences(results, against, length, level, optimum, lengths)
    return Comparison(against, score, length, optimum, results, tuple(text))


def _result(
    label: str,
    curves: Sequence[SearchCurve],
    reference: Sequence[SearchCurve] | None,
    level: float,
    length: int,
) -> StrategyResult:
    best = np.array([curve.best_so_far(length) for curve in curves])
    ends = best[:, -1]
    needed = [curve.reaches(level, length) for curve in curves]
    # A run that never reaches the level needs more than all of its evaluations.
    median = statistics.median(length + 1 if n is None else n for n in needed)
    doubts, test_doubts = [c.doubts(length) for c in curves], [c.test_flags or () for c in curves]
    columns = set(curves[0].test).intersection(*(curve.test for curve in curves[1:]))
    with np.errstate(all="ignore"):
        mean, sd = np.nanmean(best, axis=0), np.nanstd(best, axis=0, ddof=min(1, len(best) - 1))
    return StrategyResult(
        label=label,
        runs=len(curves),
        mean=float(ends.mean()),
        sd=_sd(list(ends)),
        reached=None if median > length else float(median),
        missed=sum(n is None for n in needed),
        difference=None if reference is None else _difference(curves, reference, length),
        test={
            column: (
                statistics.fmean(curve.test[column] for curve in curves),
                _sd([curve.test[column] for curve in curves]),
            )
            for column in curves[0].test
            if column in columns
        },
        used=statistics.fmean(min(len(curve.scores), length) for curve in curves),
        repeated=statistics.fmean(curve.repeated for curve in curves),
        elsewhere=statistics.fmean(curve.elsewhere for curve in curves),
        curve_mean=tuple(map(float, mean)),
        curve_sd=tuple(map(float, sd)),
        unreliable=sum(map(bool, doubts)),
        test_unreliable=sum(map(bool, test_doubts)),
        failed=merge_flags([*doubts, *test_doubts]) or (),
    )


def _sd(values: Sequence[float]) -> float:
    return float(statistics.stdev(values)) if len(values) > 1 else 0.0


def _difference(
    curves: Sequence[SearchCurve], reference: Sequence[SearchCurve], length: int
) -> Difference:
    own = {c.seed: float(c.best_so_far(length)[-1]) for c in curves}
    other = {c.seed: float(c.best_so_far(length)[-1]) for c in reference}
    whole = len(own) == len(curves) and len(other) == len(reference)
    rng = np.random.default_rng(0)
    tail = 100 * (1 - _CONFIDENCE) / 2
    if whole and None not in own and set(own) == set(other):
        gaps = np.array([own[seed] - other[seed] for seed in own])
        means = gaps[rng.integers(0, len(gaps), (_RESAMPLES, len(gaps)))].mean(1)
        low, high = np.percentile(means, [tail, 100 - tail])
        return Difference(float(gaps.mean()), float(low), float(high), len(gaps), True)
    a = np.array([float(c.best_so_far(length)[-1]) for c in curves])
    b = np.array([float(c.best_so_far(length)[-1]) for c in reference])
    means = a[rng.integers(0, len(a), (_RESAMPLES, len(a)))].mean(1)
    means = means - b[rng.integers(0, len(b), (_RESAMPLES, len(b)))].mean(1)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Difference(
        float(a.mean() - b.mean()), float(low), float(high), min(len(a), len(b)), False
    )
