"""The findings of a comparison of strategies in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nni_robust.analysis.comparison import StrategyResult

__all__ = ["sentences"]


def sentences(
    results: Sequence[StrategyResult],
    against: str,
    length: int,
    level: float,
    optimum: float | None,
    lengths: Mapping[str, int],
) -> list[str]:
    found = [
        f"Compared at {length} distinct architectures a run"
        + (f" (of {_percent(optimum)} at best)" if optimum is not None else "")
        + ": "
        + ", ".join(
            f"{r.label} {_percent(r.mean)} ± {_points(r.sd)} ({r.runs} runs)" for r in results
        )
        + ".",
        *_doubts(results),
    ]
    doubtful_reference = any(r.unreliable for r in results if r.label == against)
    for r in results:
        if r.difference is None:
            continue
        d = r.difference
        interval = f"{_signed(d.mean)} points [{_signed(d.low)}, {_signed(d.high)}]"
        how = f"{d.n} pairs of runs" if d.paired else f"at least {d.n} runs each"
        how += ", unreliable ones among them" if r.unreliable or doubtful_reference else ""
        if d.verdict == "undecided":
            found.append(
                f"{r.label} against {against}: undecided, {interval} from {how}; the interval "
                "contains 0."
            )
        else:
            found.append(f"{r.label} is {d.verdict} than {against}: {interval} from {how}.")
        if r.reached is None:
            found.append(
                f"{r.label} reaches {against}'s mean of {_percent(level)} in "
                f"{r.runs - r.missed} of {r.runs} runs, so there is no median of the evaluations "
                "needed."
            )
        else:
            late = f", {r.missed} of {r.runs} runs never" if r.missed else ""
            found.append(
                f"{r.label} needs {r.reached:g} evaluations (median) to reach {against}'s mean of "
                f"{_percent(level)}{late}; {against} had {length}."
            )
    cut = [label for label, n in lengths.items() if n > length]
    if cut:
        found.append(
            f"Runs of {', '.join(cut)} evaluated more than {length} architectures and were cut "
            "there."
        )
    found += [
        f"{r.label} ended after {r.used:g} architectures on average and keeps what it had then."
        for r in results
        if r.used < length
    ]
    extra = [r for r in results if r.elsewhere > 0]
    found += [
        f"{r.label} also used {r.elsewhere:g} evaluations a run for other tasks or as references; "
        f"the {length} do not contain them."
        for r in extra
    ]
    best = max(results, key=lambda r: r.mean)
    shared = [column for column in best.test if all(column in r.test for r in results)]
    if shared:
        found.append(
            "On the test split, which no search saw, the winners have: "
            + "; ".join(
                f"{column} "
                + ", ".join(
                    f"{r.label} {_percent(r.test[column][0])} ± {_points(r.test[column][1])}"
                    for r in results
                )
                for column in shared
            )
            + "."
        )
    return found


def _doubts(results: Sequence[StrategyResult]) -> list[str]:
    """Says that unreliable results are in the comparison, where they are."""
    found = []
    for r in results:
        places = [
            f"{n} of {r.runs} {where}"
            for n, where in ((r.unreliable, "runs"), (r.test_unreliable, "test figures"))
            if n
        ]
        if places:
            found.append(f"{r.label} ({' and '.join(places)}: {', '.join(r.failed)})")
    if not found:
        return []
    return [
        f"UNRELIABLE results are in these means, intervals and verdicts: {'; '.join(found)}; the "
        "best networks of these runs failed a check, so their scores may be too high."
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _points(value: float) -> str:
    return f"{100 * value:.2f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"
