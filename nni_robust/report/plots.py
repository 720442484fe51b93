"""Figures of a search: plain numbers in, a matplotlib figure out.

Nothing here touches pyplot, so no figure stays alive and no display is needed. Accuracies come in
as shares in [0, 1] and are drawn in percent; missing values are None or NaN and are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from nni_robust.analysis.pareto import pareto_front
from nni_robust.report._style import GREY, INK, PALETTE, SERIES, decorate, figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["COSTS", "Highlight", "plot_eps_curves", "plot_scores", "plot_tradeoff", "plot_training"]

#: Axis label and divisor of the costs that can be drawn.
COSTS = {
    "macs": ("MACs (millions, one picture)", 1e6),
    "params": ("parameters (millions)", 1e6),
}


@dataclasses.dataclass(frozen=True)
class Highlight:
    """A network drawn with a symbol of its own: cost in plain counts, accuracies in [0, 1]."""

    label: str
    cost: float
    robust: float
    clean: float | None = None


def _numbers(values: Sequence[float | None], scale: float = 1.0) -> NDArray[np.float64]:
    """Floats with NaN for what is missing or not finite."""
    array = np.array([math.nan if v is None else float(v) for v in values], dtype=float) * scale
    array[~np.isfinite(array)] = math.nan
    return array


def plot_tradeoff(
    cost: Sequence[float | None],
    robust: Sequence[float | None],
    clean: Sequence[float | None] | None = None,
    *,
    kind: str = "macs",
    attack: str = "attack",
    highlights: Sequence[Highlight] = (),
) -> Figure:
    """Draw candidates: robust accuracy against cost, and against clean accuracy beside it.

    Parameters
    ----------
    cost
        MACs or parameters of each candidate, plain counts.
    robust, clean
        Accuracies in [0, 1] of the same candidates; without `clean` there is one panel.
    kind
        Which cost it is, a key of :data:`COSTS`.
    attack
        Name of the attack behind `robust`, for the axis.
    highlights
        Networks that get a large symbol and a name in the legend.

    Returns
    -------
    matplotlib.figure.Figure
        Candidates on the Pareto front (cheaper and more robust; more accurate and more robust) are
        filled diamonds joined by a line, the others are open circles.
    """
    panels = 1 if clean is None else 2
    canvas = figure(5.2 * panels, 3.9)
    label, scale = COSTS[kind]
    y = _numbers(robust, 100)
    robust_label = f"robust accuracy, {plain(attack)} (%)"
    axes = canvas.add_subplot(1, panels, 1)
    decorate(axes, "Robustness versus cost", label, robust_label)
    marks = [(h.label, h.cost / scale, 100 * h.robust) for h in highlights]
    _scatter(axes, _numbers(cost, 1 / scale), y, "min", marks)
    if clean is not None:
        axes = canvas.add_subplot(1, panels, 2)
        decorate(axes, "Robustness versus clean accuracy", "clean accuracy (%)", robust_label)
        marks = [
            (h.label, 100 * h.clean, 100 * h.robust) for h in highlights if h.clean is not None
        ]
        _scatter(axes, _numbers(clean, 100), y, "max", marks)
    handles, names = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return canvas


def _scatter(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    better: Any,
    marks: Sequence[tuple[str, float, float]],
) -> None:
    front = pareto_front(np.column_stack([x, y]), (better, "max"))
    front.sort(key=lambda i: (x[i], y[i]))
    rest = [i for i in range(len(x)) if i not in set(front)]
    axes.scatter(
        x[rest], y[rest], s=26, facecolors="none", edgecolors=PALETTE["blue"], linewidths=1.1,
        label="candidate",
    )  # fmt: skip
    step = "steps-post" if better == "min" else "steps-pre"  # the region that the front dominates
    axes.plot(x[front], y[front], drawstyle=step, color=PALETTE["vermillion"], linewidth=1.2)
    axes.plot(
        x[front],
        y[front],
        "D",
        color=PALETTE["vermillion"],
        markersize=6,
        label="on the Pareto front",
    )
    for k, (name, at, height) in enumerate(marks):
        axes.plot(
            at, height, "*sP^X"[k % 5], color=PALETTE["orange"] if k == 0 else "#ffffff",
            markeredgecolor=INK, markersize=13 if k == 0 else 9, label=plain(name),
            linestyle="none", zorder=4,
        )  # fmt: skip


def plot_eps_curves(
    curves: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    norm: str = "linf",
    eps: float | None = None,
) -> Figure:
    """Draw accuracy against the strength of the attack, one line per network.

    Parameters
    ----------
    curves
        Points (eps in pixel units, accuracy in [0, 1]) of each network.
    norm
        ``"linf"`` or ``"l2"``.
    eps
        The eps that the networks were searched and trained for, marked by a line.
    """
    canvas = figure(7.6, 4.0)
    axes = canvas.add_subplot()
    symbol = {"linf": "L∞", "l2": "L2"}.get(norm, norm)
    decorate(
        axes, "Accuracy versus attack strength", f"eps (pixel units, {symbol})", "accuracy (%)"
    )
    for k, (name, points) in enumerate(curves.items()):
        colour, marker, style = SERIES[k % len(SERIES)]
        ordered = sorted(points, key=lambda point: point[0])
        axes.plot(
            [point[0] for point in ordered], _numbers([point[1] for point in ordered], 100),
            color=colour, marker=marker, linestyle=style, markersize=5, linewidth=1.8,
            label=plain(name),
        )  # fmt: skip
    if eps is not None:
        axes.axvline(eps, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.text(
            eps, 1.0, " threat model", transform=axes.get_xaxis_transform(), fontsize=7.5,
            color="#52606d", va="top",
        )  # fmt: skip
    axes.set_ylim(-2, 102)
    if norm == "linf":
        top = axes.secondary_xaxis("top", functions=(_to_bytes, _from_bytes))
        top.set_xlabel("eps × 255 (steps of an 8-bit picture)", fontsize=8, color=INK)
        top.tick_params(labelsize=7.5, colors=INK)
        top.spines["top"].set_color("#9aa5b1")
    if curves:
        axes.legend(frameon=False, fontsize=8)
    return canvas


def _to_bytes(eps: Any) -> Any:
    return 255 * eps


def _from_bytes(steps: Any) -> Any:
    return steps / 255


def plot_training(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw loss, clean and robust accuracy over the epochs, one line per run.

    Parameters
    ----------
    histories
        Epoch records of each run: mappings with ``epoch``, ``loss``, ``val_clean``, ``val_robust``
        (accuracies in [0, 1], None where an epoch was not validated).
    """
    canvas = figure(10.4, 3.3)
    panels = (
        ("loss", "Loss", "training loss", 1.0),
        ("val_clean", "Clean accuracy", "validation accuracy (%)", 100.0),
        ("val_robust", "Robust accuracy", "validation accuracy (%)", 100.0),
    )
    for place, (key, title, label, scale) in enumerate(panels, 1):
        axes = canvas.add_subplot(1, 3, place)
        decorate(axes, title, "epoch", label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for k, (name, history) in enumerate(histories.items()):
            colour, marker, style = SERIES[k % len(SERIES)]
            y = _numbers([record.get(key) for record in history], scale)
            x = _numbers([record.get("epoch", i) for i, record in enumerate(history)])
            known = np.isfinite(y)
            axes.plot(
                x[known], y[known], color=colour, linestyle=style, linewidth=1.6,
                label=plain(name), marker=marker, markersize=4,
                markevery=max(1, int(known.sum()) // 8),
            )  # fmt: skip
    handles, names = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return canvas


def plot_scores(
    scores: Sequence[tuple[int, float | None]], *, label: str = "score on the validation split (%)"
) -> Figure:
    """Draw the score of each candidate in the order of the trials, and the best so far.

    Parameters
    ----------
    scores
        (trial index, score in [0, 1]); None marks a failed trial, drawn as a cross at the bottom.
    label
        What the score is.
    """
    canvas = figure(10.4, 3.2)
    axes = canvas.add_subplot()
    decorate(axes, "Search history", "trial index", label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ordered = sorted(scores, key=lambda pair: pair[0])
    x = np.array([index for index, _ in ordered], dtype=float)
    y = _numbers([score for _, score in ordered], 100)
    known = np.isfinite(y)
    axes.plot(
        x[known],
        y[known],
        "o",
        markerfacecolor="none",
        markeredgecolor=PALETTE["blue"],
        label="candidate",
    )
    if known.any():
        best = np.maximum.accumulate(y[known])
        axes.plot(
            x[known], best, drawstyle="steps-post", color=PALETTE["vermillion"], linewidth=1.6,
            label="best so far",
        )  # fmt: skip
    if not known.all():
        axes.plot(
            x[~known], np.zeros((~known).sum()), "x", color=INK, markersize=6, label="failed",
            clip_on=False, transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    canvas.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return canvas
