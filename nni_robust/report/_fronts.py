"""Pareto fronts of candidates: robust accuracy against MACs, parameters and clean accuracy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from nni_robust.analysis.pareto import pareto_front
from nni_robust.report._style import INK, PALETTE, decorate, figure, numbers, plain, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Candidates", "plot_pareto"]

#: Panel: its title, its axis, what a number is divided by, and which way is better.
_PANELS: Mapping[str, tuple[str, str, float, str]] = {
    "macs": ("Robustness versus MACs", "MACs (millions, one picture)", 1e6, "min"),
    "params": ("Robustness versus parameters", "parameters (millions)", 1e6, "min"),
    "clean": ("Robustness versus clean accuracy", "clean accuracy (%)", 0.01, "max"),
}
#: A cost that spans more than this factor is drawn on a logarithmic axis.
_WIDE = 20.0
#: More candidates than this are drawn with smaller symbols.
_MANY = 150


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Candidates of one search; all sequences have one entry per candidate.

    Parameters
    ----------
    robust, clean
        Accuracies in [0, 1]; None or NaN where not known. Empty: not known for any.
    macs, params
        Plain counts.
    chosen
        Place of the candidate that the search chose.
    """

    robust: Sequence[float | None]
    clean: Sequence[float | None] = ()
    macs: Sequence[float | None] = ()
    params: Sequence[float | None] = ()
    chosen: int | None = None


def plot_pareto(groups: Mapping[str, Candidates], *, attack: str = "attack") -> Figure:
    """Draw candidates, robust accuracy against whatever else is known, one panel each.

    Parameters
    ----------
    groups
        Candidates of each search by its name; a single one is drawn without its name.
    attack
        Name of the attack behind `robust`, for the axis.

    Returns
    -------
    matplotlib.figure.Figure
        Filled symbols joined by a line are on that panel's Pareto front. Of a single search, open
        diamonds are those on the front of robust accuracy, clean accuracy and MACs together. A star
        is the candidate that was chosen.
    """
    panels = [key for key in _PANELS if any(_known(getattr(g, key)) for g in groups.values())]
    panels = panels or ["macs"]
    canvas = figure(max(5.6, 3.7 * len(panels)), 3.9)
    for place, key in enumerate(panels, 1):
        title, label, scale, better = _PANELS[key]
        axes = canvas.add_subplot(1, len(panels), place)
        what = f"robust accuracy, {plain(attack)} (%)" if place == 1 else ""
        decorate(axes, title, label, what)
        shown = []
        for number, (name, group) in enumerate(groups.items()):
            y = numbers(group.robust, 100)
            x = numbers(getattr(group, key) or [None] * len(y), 1 / scale)
            shown.append(x[np.isfinite(x) & np.isfinite(y)])
            if len(groups) == 1:
                _single(axes, x, y, better, _triple(group))
            else:
                _one_of_several(axes, x, y, better, name, number)
            if group.chosen is not None:
                axes.plot(
                    x[group.chosen], y[group.chosen], "*", color=PALETTE["orange"], markersize=13,
                    markeredgecolor=INK, linestyle="none", zorder=4,
                    label="chosen" if number == 0 else "_",
                )  # fmt: skip
        _maybe_logarithmic(axes, np.concatenate(shown) if shown else np.array([]), better)
    handles, names = canvas.axes[0].get_legend_handles_labels()
    if handles:
        columns = 5 if len(groups) == 1 else 4
        canvas.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )
    return canvas


def _known(values: Sequence[float | None]) -> bool:
    return any(v is not None and math.isfinite(v) for v in values)


def _triple(group: Candidates) -> list[int]:
    """Places on the front of robust, clean and MACs together; none where one is unknown."""
    if not (_known(group.clean) and _known(group.macs)):
        return []
    points = np.column_stack([numbers(v) for v in (group.robust, group.clean, group.macs)])
    return pareto_front(points, ("max", "max", "min"))


def _front(x: NDArray[np.float64], y: NDArray[np.float64], better: Any) -> list[int]:
    return sorted(
        pareto_front(np.column_stack([x, y]), (better, "max")), key=lambda i: (x[i], y[i])
    )


def _step(better: str) -> Any:
    """The line encloses the region that the front dominates."""
    return "steps-post" if better == "min" else "steps-pre"


def _single(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], better: str, triple: list[int]
) -> None:
    front = _front(x, y, better)
    both = [i for i in triple if i not in front]
    rest = [i for i in range(len(x)) if i not in {*front, *both}]
    axes.scatter(
        x[rest], y[rest], s=26 if len(x) <= _MANY else 9, facecolors="none",
        edgecolors=PALETTE["blue"], linewidths=1.1, label="candidate",
    )  # fmt: skip
    axes.plot(
        x[both], y[both], "D", markerfacecolor="none", markeredgecolor=PALETTE["vermillion"],
        markersize=5.5, label="on the front of robust, clean and MACs together",
    )  # fmt: skip
    axes.plot(x[front], y[front], drawstyle=_step(better), color=PALETTE["vermillion"], lw=1.2)
    axes.plot(
        x[front], y[front], "D", color=PALETTE["vermillion"], markersize=6,
        label="on the Pareto front",
    )  # fmt: skip


def _one_of_several(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    better: str,
    name: str,
    number: int,
) -> None:
    look = series(number)
    colour, marker = look["color"], look["marker"]
    front = _front(x, y, better)
    rest = [i for i in range(len(x)) if i not in front]
    axes.plot(
        x[rest], y[rest], marker=marker, markerfacecolor="none", markeredgecolor=colour,
        markersize=4.5 if len(x) <= _MANY else 3, linestyle="none", alpha=0.75,
    )  # fmt: skip
    style = look["linestyle"]
    axes.plot(x[front], y[front], drawstyle=_step(better), color=colour, linestyle=style, lw=1.3)
    axes.plot(
        x[front], y[front], **{**look, "linestyle": "none"}, markersize=6.5, label=plain(name)
    )


def _maybe_logarithmic(axes: Axes, x: NDArray[np.float64], better: str) -> None:
    if better != "min" or not len(x) or x.min() <= 0 or x.max() / x.min() < _WIDE:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
