"""Figure of a comparison of strategies: best so far over evaluations, and the best at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nni_robust.report._style import GREY, INK, SERIES, decorate, figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nni_robust.analysis.comparison import Comparison, StrategyResult

__all__ = ["plot_comparison"]


def plot_comparison(comparison: Comparison) -> Figure:
    """Mean best-so-far curves with a band of one standard deviation, and the ends with their means.

    Parameters
    ----------
    comparison
        From :func:`nni_robust.analysis.comparison.compare_runs`; scores are shares and are drawn in
        percent. Strategies with unreliable runs are marked.
    """
    names = [_name(result) for result in comparison.results]
    canvas = figure(9.6, 4.2)
    left, right = canvas.subplots(1, 2, width_ratios=[1.7, 1])
    steps = np.arange(1, comparison.evaluations + 1)
    for place, result in enumerate(comparison.results):
        colour, marker, line = SERIES[place % len(SERIES)]
        mean, sd = 100 * np.array(result.curve_mean), 100 * np.array(result.curve_sd)
        left.fill_between(steps, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
        left.plot(
            steps, mean, color=colour, linestyle=line, linewidth=1.8, label=names[place],
            marker=marker, markevery=max(1, len(steps) // 8), markersize=5,
        )  # fmt: skip
        right.errorbar(
            100 * result.mean, place, xerr=100 * result.sd, color=colour, marker=marker,
            markersize=7, capsize=4, linewidth=1.8,
        )  # fmt: skip
        right.annotate(
            f"{100 * result.mean:.2f} ± {100 * result.sd:.2f}", (100 * result.mean, place),
            xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8, color=INK,
        )  # fmt: skip
    level = 100 * comparison[comparison.against].mean
    for axes in (left, right):
        draw = axes.axhline if axes is left else axes.axvline
        draw(level, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        if comparison.optimum is not None:
            draw(100 * comparison.optimum, color=INK, linewidth=1)
    # The first evaluations are far below the rest and would flatten it.
    worst = min(result.curve_mean[len(steps) // 10] for result in comparison.results)
    tops = [100 * result.mean + 100 * result.sd for result in comparison.results]
    top = max([*tops, *([100 * comparison.optimum] if comparison.optimum is not None else [])])
    room = max(top - 100 * worst, 1e-3)
    left.set_ylim(100 * worst - 0.25 * room, top + 0.08 * room)
    right.set_ylim(len(comparison.results) - 0.4, -0.6)
    right.set_yticks(range(len(names)), names)
    left.legend(fontsize=8, frameon=False, loc="lower right")
    what = "score (%)" if comparison.score == "default" else f"{plain(comparison.score)} (%)"
    decorate(left, "Best so far", "distinct architectures evaluated", what)
    decorate(right, f"Best after {comparison.evaluations}", what, "")
    note = "band and bar: one standard deviation over runs; dotted: mean of "
    note += plain(comparison.against) + (
        "; black: best in the table" if comparison.optimum is not None else ""
    )
    canvas.supxlabel(note, fontsize=7.5, color=GREY)
    return canvas


def _name(result: StrategyResult) -> str:
    doubtful = max(result.unreliable, result.test_unreliable)
    mark = f"\n(UNRELIABLE: {doubtful} of {result.runs})" if doubtful else ""
    return plain(result.label) + mark
