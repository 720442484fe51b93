"""Who teaches whom: the map from a student's layers to the layers of its teachers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nni_robust.errors import UserError
from nni_robust.report._style import GREY, INK, SERIES, figure, plain
from nni_robust.store import read_json

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["plot_tutors", "read_tutors", "tutor_figures"]

_KEYS = ("students", "layers", "tutors", "matrix")
#: Lines fainter than this share of the strongest are left out: 64 x 31 of them say nothing.
_FAINTEST = 0.15


def read_tutors(run: str | Path) -> dict[str, Any] | None:
    """``tutors.json`` of a run that has tutors; None where it is missing, damaged or empty."""
    try:
        found = read_json(Path(run) / "tutors.json")
    except UserError:
        return None
    if not isinstance(found, Mapping) or not all(isinstance(found.get(key), list) for key in _KEYS):
        return None
    shape = (len(found["students"]), len(found["layers"]))
    try:
        matrix = np.asarray(found["matrix"], dtype=float)
        named = [layer["name"] for key in ("students", "layers") for layer in found[key]]
        tutors = [
            {
                "student": str(t["student"]),
                "tutor": str(t["tutor"]),
                "teacher": int(t["teacher"]),
                "probability": float(t["probability"]),
                "margin": float(t["margin"]),
            }
            for t in found["tutors"]
        ]
    except (KeyError, TypeError, ValueError):
        return None
    if matrix.shape != shape or not named or not np.isfinite(matrix).all():
        return None
    return {
        **found,
        "tutors": tutors,
        "mapping": str(found.get("mapping", "")),
        "teachers": [str(name) for name in found.get("teachers") or ["teacher"]],
    }


def plot_tutors(found: Mapping[str, Any]) -> Figure:
    """The student's layers by depth on the left, the teachers' on the right, and lines between.

    Parameters
    ----------
    found
        What :func:`read_tutors` gives. A line is as wide as its probability; the tutor of a layer
        has a dark line, other layers with a sizeable probability a pale one.

    Returns
    -------
    Figure
        Input at the bottom, output at the top; dashes separate map sizes.
    """
    students, layers = found["students"], found["layers"]
    matrix = np.asarray(found["matrix"], dtype=float)
    own, theirs = _heights(len(students)), _heights(len(layers))
    canvas = figure(9.6, max(3.6, 0.16 * max(len(students), len(layers)) + 1.2))
    axes = canvas.add_subplot()
    strongest = matrix.max(initial=0.0) or 1.0
    chosen = {i: int(row.argmax()) for i, row in enumerate(matrix) if row.max(initial=0.0) > 0}
    for i, row in enumerate(matrix):
        for j, probability in enumerate(row):
            first = chosen.get(i) == j
            if not first and probability < _FAINTEST * strongest:
                continue
            colour, _, style = SERIES[int(layers[j].get("teacher", 0)) % len(SERIES)]
            axes.plot(
                [0, 1],
                [own[i], theirs[j]],
                color=colour,
                linestyle=style if first else "-",
                linewidth=0.4 + 2.6 * probability,
                alpha=0.85 if first else 0.18,
                solid_capstyle="butt",
            )
    for x, items, heights, side in ((0, students, own, "right"), (1, layers, theirs, "left")):
        axes.plot([x] * len(items), heights, "o", color=INK, markersize=3)
        size = 7.5 if len(items) <= 40 else 5.5
        for item, height in zip(items, heights, strict=True):
            axes.annotate(
                plain(str(item["name"])),
                (x, height),
                xytext=(-6 if x == 0 else 6, 0),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=size,
                color=INK,
            )
        for (a, low), (b, high) in itertools.pairwise(zip(items, heights, strict=True)):
            if a.get("side") != b.get("side") and a.get("teacher") == b.get("teacher"):
                middle = (low + high) / 2
                axes.plot([x - 0.04, x + 0.04], [middle, middle], color=GREY, linewidth=0.9)
    names = ", ".join(found["teachers"])
    axes.text(0, 1.06, "student, output on top", ha="center", fontsize=9, color=INK)
    axes.text(1, 1.06, plain(f"teacher: {names}"), ha="center", fontsize=9, color=INK)
    axes.set_xlim(-0.55, 1.55)
    axes.set_ylim(-0.05, 1.12)
    axes.set_axis_off()
    return canvas


def _heights(number: int) -> list[float]:
    return [0.5] if number == 1 else [k / (number - 1) for k in range(number)]


def tutor_figures(run: Path) -> dict[str, Markup]:
    """The figure ``tutors`` as inline SVG; nothing where the run has no tutors."""
    found = read_tutors(run)
    if found is None:
        return {}
    from markupsafe import Markup

    from nni_robust.report._svg import inline_svg

    told = _sentences(found["tutors"])
    alt = f"Lines from the student's layers to their tutors. {told}"
    # Safe: matplotlib escapes the texts of its SVG, and inline_svg escapes the description.
    return {"tutors": Markup(inline_svg(plot_tutors(found), "fig-tutors", alt))}


def _sentences(tutors: Sequence[Mapping[str, Any]]) -> str:
    shown = [f"{t['student']} learns from {t['tutor']}" for t in tutors[:100]]
    return "; ".join(shown) + "." if shown else "The numbers are in tutors.json."
