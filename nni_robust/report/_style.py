"""Colours, markers and line styles of every figure: readable for colour-blind people and in grey.

Palette: M. Okabe, K. Ito, "Color Universal Design" (2008). Colour never carries a meaning alone; a
marker, a line style or a label always says the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = [
    "GREY",
    "INK",
    "PALETTE",
    "SERIES",
    "decorate",
    "figure",
    "numbers",
    "plain",
    "series",
]

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILLION, SKY = "#D55E00", "#56B4E9"
PALETTE = {
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "purple": PURPLE,
    "vermillion": VERMILLION,
    "sky": SKY,
}
INK, GREY = "#1f2933", "#7b8794"

#: (colour, marker, line style) of the first, second, … series of a plot.
SERIES: tuple[tuple[str, str, Any], ...] = (
    (BLUE, "o", "-"),
    (VERMILLION, "s", (0, (5, 1.5))),
    (GREEN, "^", (0, (1, 1.2))),
    (PURPLE, "D", (0, (6, 1.5, 1, 1.5))),
    (ORANGE, "v", (0, (3, 1, 1, 1, 1, 1))),
    (SKY, "P", (0, (8, 2))),
    (INK, "X", (0, (2, 2))),
)


#: Colours that are too pale on white to stand alone: their symbols get a dark edge.
_PALE = (ORANGE, SKY)


def series(number: int) -> dict[str, Any]:
    """How series `number` of a plot is drawn, as arguments of ``Axes.plot``.

    After the last of :data:`SERIES` colours come again, with other symbols and line styles: 49
    series differ in colour and symbol.
    """
    again, place = divmod(number, len(SERIES))
    colour = SERIES[place][0]
    marker = SERIES[(place + again) % len(SERIES)][1]
    style = SERIES[(place + 2 * again) % len(SERIES)][2]
    edge = INK if colour in _PALE else colour
    return {"color": colour, "marker": marker, "linestyle": style, "markeredgecolor": edge}


def numbers(values: Sequence[float | None], scale: float = 1.0) -> NDArray[np.float64]:
    """Floats with NaN for what is missing or not finite."""
    array = np.array([math.nan if v is None else float(v) for v in values], dtype=float) * scale
    array[~np.isfinite(array)] = math.nan
    return array


def figure(width: float, height: float) -> Figure:
    """A figure outside pyplot (no global state, no window), size in inches."""
    canvas = Figure(figsize=(width, height), facecolor="white")
    canvas.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06, wspace=0.03)
    return canvas


def decorate(axes: Axes, title: str, x: str, y: str) -> None:
    """House look: labelled axes with units, light grid, no box."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=8)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(True, color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa5b1")


def plain(text: str) -> str:
    """Text that matplotlib shows as it is (a dollar sign would start a formula)."""
    return text.replace("$", r"\$")
