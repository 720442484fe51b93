"""Figures of a search: plain numbers in, a matplotlib figure out.

Nothing here touches pyplot, so no figure stays alive and no display is needed. Accuracies come in
as shares in [0, 1] and are drawn in percent; missing values are None or NaN and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from nni_robust.report._style import (
    GREY,
    INK,
    PALETTE,
    decorate,
    figure,
    numbers,
    plain,
    series,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "plot_best_so_far",
    "plot_eps_curves",
    "plot_scores",
    "plot_steps_curves",
    "plot_training",
]


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
    canvas = figure(5.6, 3.9)
    axes = canvas.add_subplot()
    symbol = {"linf": "L∞", "l2": "L2"}.get(norm, norm)
    decorate(
        axes, "Accuracy versus attack strength", f"eps (pixel units, {symbol})", "accuracy (%)"
    )
    for k, (name, points) in enumerate(curves.items()):
        ordered = sorted(points, key=lambda point: point[0])
        axes.plot(
            [point[0] for point in ordered], numbers([point[1] for point in ordered], 100),
            **series(k), markersize=5, linewidth=1.8, label=plain(name),
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


def plot_steps_curves(
    curves: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    attack: str = "PGD",
    eps: float | None = None,
) -> Figure:
    """Draw accuracy against the number of steps of an attack, one line per network.

    Parameters
    ----------
    curves
        Points (steps, accuracy in [0, 1]) of each network.
    attack
        Name of the attack.
    eps
        Its strength in pixel units, for the axis.

    Returns
    -------
    matplotlib.figure.Figure
        Steps on a logarithmic axis. A curve that still falls at its end says that the attack was
        too short.
    """
    canvas = figure(5.6, 3.9)
    axes = canvas.add_subplot()
    strength = "" if eps is None else f", eps {eps:.4g}"
    label = f"steps of {plain(attack)}{strength}"
    decorate(axes, "Accuracy versus attack steps", label, "accuracy (%)")
    for k, (name, points) in enumerate(curves.items()):
        ordered = sorted(points, key=lambda point: point[0])
        axes.plot(
            [point[0] for point in ordered], numbers([point[1] for point in ordered], 100),
            **series(k), markersize=5, linewidth=1.8, label=plain(name),
        )  # fmt: skip
    ticks = sorted({point[0] for points in curves.values() for point in points})
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{steps:g}" for steps in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.legend(frameon=False, fontsize=8)
    axes.set_ylim(-2, 102)
    return canvas


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
            y = numbers([record.get(key) for record in history], scale)
            x = numbers([record.get("epoch", i) for i, record in enumerate(history)])
            known = np.isfinite(y)
            axes.plot(
                x[known], y[known], **series(k), linewidth=1.6, label=plain(name), markersize=4,
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
    y = numbers([score for _, score in ordered], 100)
    known = np.isfinite(y)
    axes.plot(
        x[known],
        y[known],
        "o",
        markerfacecolor="none",
        markeredgecolor=PALETTE["blue"],
        markersize=6 if len(x) <= 150 else 3,
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


def plot_best_so_far(
    searches: Mapping[str, Sequence[float | None]],
    *,
    label: str = "score on the validation split (%)",
) -> Figure:
    """Draw the best score so far of several searches over the candidates that each has tried.

    Parameters
    ----------
    searches
        Scores in [0, 1] of each search in the order of its trials; None marks a failed trial.
    label
        What the score is.
    """
    canvas = figure(10.4, 3.6)
    axes = canvas.add_subplot()
    decorate(axes, "Best score so far", "candidates tried", label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for k, (name, scores) in enumerate(searches.items()):
        y = numbers(scores, 100)
        known = np.isfinite(y)
        best = np.maximum.accumulate(np.where(known, y, -np.inf))
        best[~np.isfinite(best)] = np.nan
        axes.plot(
            np.arange(1, len(y) + 1), best, **series(k), drawstyle="steps-post", linewidth=1.8,
            label=plain(name), markersize=5, markevery=max(1, len(y) // 8),
        )  # fmt: skip
    handles, names = axes.get_legend_handles_labels()
    if handles:
        canvas.legend(
            handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    return canvas
