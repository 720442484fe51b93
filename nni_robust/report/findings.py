"""Figures of the candidate study: RobNet's three findings on our own candidates.

Shapes follow the figures of Guo et al., "When NAS Meets Robustness" (CVPR 2020): density
(figure 5), probe (figure 4), budget (figure 6b), FSP distance (figures 7 and 8). Every figure can
be drawn for every study; where there is nothing to draw it says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from nni_robust.analysis.budget import BUDGETS, BudgetFinding, budget_of
from nni_robust.analysis.density import DensityFinding
from nni_robust.analysis.probe import LinearProbe
from nni_robust.analysis.rejection import last_cells
from nni_robust.analysis.smoothness import CellCorrelation, FspFinding
from nni_robust.analysis.statistics import Correlation
from nni_robust.analysis.study import StudyRow
from nni_robust.analysis.topology import robnet_bit_names
from nni_robust.report._style import GREY, INK, PALETTE, decorate, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "plot_budget",
    "plot_density",
    "plot_fsp_correlation",
    "plot_fsp_gap",
    "plot_probe",
]

_ROBUST = "robust accuracy (%)"
_SHARES = {
    "convs": "direct convolutions / all convolutions",
    "direct_edges": "direct convolutions / direct edges",
}


def plot_density(rows: Sequence[StudyRow], finding: DensityFinding) -> Figure:
    """Draw density against robust accuracy, one point per candidate, and the buckets' means.

    Parameters
    ----------
    rows
        The candidates.
    finding
        Of these candidates. The size of a bucket's square grows with its candidates.
    """
    canvas = figure(5.6, 4.1)
    axes = canvas.add_subplot()
    decorate(
        axes, "Density versus robustness", "density (share of operations that are on)", _ROBUST
    )
    if not rows:
        return _nothing(canvas, "no candidates")
    _circles(axes, [r.topology.density for r in rows], [100 * r.robust for r in rows], "candidate")
    most = max(bucket.n for bucket in finding.buckets)
    axes.scatter(
        [bucket.density for bucket in finding.buckets],
        [100 * bucket.robust for bucket in finding.buckets],
        s=[25 + 90 * bucket.n / most for bucket in finding.buckets],
        color=PALETTE["vermillion"],
        marker="s",
        edgecolors=INK,
        linewidths=0.7,
        zorder=3,
        label="mean of a range of accuracy (size: its candidates)",
    )
    _note(axes, finding.pearson, finding.spearman)
    _legend(canvas, axes)
    return canvas


def plot_probe(probe: LinearProbe, names: Sequence[tuple[str, str, bool]] | None = None) -> Figure:
    """Draw the weights of the linear probe, edge by edge.

    Parameters
    ----------
    probe
        The fitted probe.
    names
        Edge, operation, and whether the edge is direct, of each bit; None is a RobNet cell's.
    """
    canvas = figure(7.6, 3.7)
    axes = canvas.add_subplot()
    decorate(
        axes, "What marks robust architectures", "edge (bold: direct)", "weight of the linear probe"
    )
    names = robnet_bit_names() if names is None else names
    if not probe.weights:
        return _nothing(canvas, f"no probe: {probe.reason}")
    if len(names) != len(probe.weights):
        return _nothing(
            canvas, f"{len(probe.weights)} weights (a code per cell) are not drawn edge by edge"
        )
    edges = list(dict.fromkeys(edge for edge, _, _ in names))
    operations = list(dict.fromkeys(operation for _, operation, _ in names))
    looks = ((PALETTE["sky"], ""), (PALETTE["blue"], "////"), (PALETTE["orange"], "...."))
    width = 0.8 / len(operations)
    for k, operation in enumerate(operations):
        mine = [i for i, name in enumerate(names) if name[1] == operation]
        axes.bar(
            [edges.index(names[i][0]) + (k - (len(operations) - 1) / 2) * width for i in mine],
            [probe.weights[i] for i in mine],
            width,
            color=looks[k % 3][0],
            hatch=looks[k % 3][1],
            edgecolor=INK,
            linewidth=0.5,
            label=operation,
        )
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.set_xticks(range(len(edges)), edges)
    direct = {edge for edge, _, is_direct in names if is_direct}
    for tick in axes.get_xticklabels():
        tick.set_fontweight("bold" if tick.get_text() in direct else "normal")
    axes.set_title(
        f"fitted {_share(probe.train_accuracy)}, cross-validated "
        f"{_share(probe.validated_accuracy)} [{_share(probe.low)}, {_share(probe.high)}]",
        loc="right",
        fontsize=8,
        color=INK,
    )
    _legend(canvas, axes)
    return canvas


def plot_budget(rows: Sequence[StudyRow], finding: BudgetFinding) -> Figure:
    """Draw the share of direct convolutions against robust accuracy, one panel per budget.

    Parameters
    ----------
    rows
        The candidates.
    finding
        Of these candidates; its definition of the share is drawn.
    """
    canvas = figure(10.4, 3.7)
    label = _SHARES[finding.definition]
    first: Axes | None = None
    for place, group in enumerate(finding.groups, 1):
        axes = canvas.add_subplot(1, 3, place, sharey=first)
        first = axes if first is None else first
        title = f"{group.budget.capitalize()}: {BUDGETS[group.budget]} convolutions, n = {group.n}"
        decorate(axes, title, label, _ROBUST if place == 1 else "")
        mine = [row for row in rows if budget_of(row.topology) == group.budget]
        share = [row.topology.direct_share(finding.definition) for row in mine]
        _circles(axes, share, [100 * row.robust for row in mine], "candidate")
        pearson, spearman = group.pearson[finding.definition], group.spearman[finding.definition]
        if pearson.value is not None:
            _line(axes, share, [100 * row.robust for row in mine])
        _note(axes, pearson, spearman)
    return canvas


def plot_fsp_correlation(finding: FspFinding) -> Figure:
    """Draw, for each cell, how FSP distance and accuracy gap are correlated.

    Parameters
    ----------
    finding
        Of a study. Bars are 95 % intervals; the late cells have a grey ground.
    """
    canvas = figure(7.2, 3.9)
    axes = canvas.add_subplot()
    decorate(
        axes,
        "FSP distance and the cost of an attack",
        "cell",
        "correlation with\n(clean − robust accuracy)",
    )
    if not finding.cells:
        return _nothing(canvas, "no FSP distances in this study")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    looks = (("pearson", "blue", "o", -0.12), ("spearman", "vermillion", "s", 0.12))
    for kind, colour, marker, shift in looks:
        points = [
            (cell + shift, c.value, c.value - (c.low or 0.0), (c.high or 0.0) - c.value)
            for cell, c in enumerate(_of_kind(kind, finding.cells))
            if c.value is not None
        ]
        if points:
            x, y, below, above = zip(*points, strict=True)
            axes.errorbar(
                x, y, (np.maximum(below, 0), np.maximum(above, 0)), color=PALETTE[colour],
                marker=marker, markersize=5, linestyle="none", elinewidth=1.1, capsize=2,
                label=kind.capitalize(),
            )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.9)
    count = len(finding.cells)
    axes.axvspan(
        count - finding.last - 0.5, count - 0.5, color="#e4e7eb", alpha=0.6, zorder=0,
        label=f"the last {finding.last}",
    )  # fmt: skip
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(-1.05, 1.05)
    if finding.late is not None:
        _note(axes, finding.late.pearson, finding.late.spearman, f"mean of {finding.late.name}: ")
    _legend(canvas, axes)
    return canvas


def plot_fsp_gap(
    rows: Sequence[StudyRow], *, last: int | None = None, kept: Collection[int] | None = None
) -> Figure:
    """Draw the mean FSP distance of the late cells against the accuracy that the attack costs.

    Parameters
    ----------
    rows
        The candidates; those without FSP distances are left out.
    last
        Late cells; None is half of them.
    kept
        Positions in `rows` that survived :func:`nni_robust.analysis.reject_by_fsp`; None draws all
        alike.
    """
    canvas = figure(5.6, 4.1)
    axes = canvas.add_subplot()
    known = [(k, row) for k, row in enumerate(rows) if row.fsp and row.gap is not None]
    if not known:
        decorate(
            axes, "FSP distance versus accuracy gap", "FSP distance", "clean − robust (points)"
        )
        return _nothing(canvas, "no FSP distances in this study")
    late = last_cells(min(len(row.fsp) for _, row in known), last)
    decorate(
        axes,
        "FSP distance versus accuracy gap",
        f"FSP distance, mean of the last {late} cells",
        "clean − robust accuracy (points)",
    )
    x = np.array([float(np.mean(row.fsp[-late:])) for _, row in known])
    y = np.array([100 * (row.gap or 0.0) for _, row in known])
    stays = np.array([kept is None or k in set(kept) for k, _ in known])
    _circles(axes, x[stays], y[stays], "candidate" if kept is None else "kept")
    if kept is not None:
        axes.plot(
            x[~stays], y[~stays], "x", color=PALETTE["vermillion"], markersize=6, label="rejected"
        )
    if x.min() > 0 and x.max() > 100 * x.min():
        axes.set_xscale("log")
    _legend(canvas, axes)
    return canvas


def _of_kind(kind: str, cells: Sequence[CellCorrelation]) -> list[Correlation]:
    return [cell.pearson if kind == "pearson" else cell.spearman for cell in cells]


def _circles(axes: Axes, x: Any, y: Any, label: str) -> None:
    axes.scatter(
        x, y, s=24, facecolors="none", edgecolors=PALETTE["blue"], linewidths=1.0, label=label
    )


def _line(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Least-squares line over the range of x."""
    slope, height = np.polyfit(x, y, 1)
    ends: NDArray[np.float64] = np.array([min(x), max(x)])
    axes.plot(ends, slope * ends + height, color=PALETTE["vermillion"], linewidth=1.4)


def _note(axes: Axes, pearson: Correlation, spearman: Correlation, before: str = "") -> None:
    """Write the two coefficients with their intervals, or why there are none."""
    if pearson.value is None:
        text = f"{before}no correlation: {pearson.reason}"
    else:
        text = f"{before}{pearson}\n{spearman}"
    axes.text(
        0.98, 0.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=7.5,
        color=INK, zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )  # fmt: skip


def _legend(canvas: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _nothing(canvas: Figure, why: str) -> Figure:
    """A figure that says why it is empty."""
    canvas.axes[0].text(
        0.5, 0.5, why, transform=canvas.axes[0].transAxes, ha="center", va="center", fontsize=9,
        color=GREY,
    )  # fmt: skip
    return canvas


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
