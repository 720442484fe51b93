"""A wide-spectrum search in the report: did it move, did its predictor know, what did it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.errors import UserError
from nni_robust.report._format import number
from nni_robust.report._style import SERIES, decorate, figure, plain
from nni_robust.store import read_json

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["plot_wide_spectrum", "read_wide_spectrum", "wide_spectrum_figures"]

#: Drift in units of the initial weights below which the result is mostly their noise.
_MOVED = 1.0


def read_wide_spectrum(run: str | Path) -> dict[str, Any] | None:
    """Tables of ``wide_spectrum.json``; None where it is missing, damaged or empty.

    Returns
    -------
    dict
        ``searches``, ``comparisons``: rows of a table each; ``sentences``: what to know about them;
        ``curves``: objective and drift over epochs by name of the search.
    """
    try:
        found = read_json(Path(run) / "wide_spectrum.json")
        searches = [_search_row(search) for search in found["searches"]]
        comparisons = [
            {
                "seed": int(c["seed"]),
                "label": str(row["label"]),
                "pictures": int(row["pictures"]),
                "tau": number(row["tau"]),
                "passes": float(row["passes_share"]),
                "seconds": float(row["cpu_seconds_share"]),
            }
            for c in found.get("comparisons", [])
            for row in c["rows"]
        ]
        curves = {
            row["name"]: _curve(search)
            for row, search in zip(searches, found["searches"], strict=True)
        }
        stability = [
            f"Results ({row['result']}) of '{row['label']}' from different seeds share "
            f"{_mean(row['shared']):.1f} of {int(row['choices'])} choices on average."
            for row in found.get("stability", [])
        ]
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None
    if not searches:
        return None
    return {
        "searches": searches,
        "comparisons": comparisons,
        "curves": curves,
        "sentences": [s for row in searches for s in row["warnings"]] + stability,
    }


def _search_row(search: Mapping[str, Any]) -> dict[str, Any]:
    drift, cost, signal = search["drift"], search["cost"], search["signal"]
    name = f"{search['label']}, seed {int(search['seed'])}"
    tau, moved = number(search["predictor"]["tau"]), float(drift["relative"])
    warnings = []
    if moved < _MOVED:
        warnings.append(
            f"Search '{name}': architecture weights moved by {moved:.2g} times their initial "
            "spread, so its last result is mostly the initial noise."
        )
    if signal.get("fell_back"):
        warnings.append(
            f"Search '{name}': the noise estimator was no better than rescaled real noise, which "
            "was used instead."
        )
    return {
        "name": name,
        "objective": float(search["finalists"][0]["objective"]),
        "changed": int(drift["changed"]),
        "choices": int(drift["choices"]),
        "drift": moved,
        "tau": tau,
        "passes": float(cost["train_passes"]) + float(cost["measure_passes"]),
        "seconds": float(cost["seconds"]),
        "warnings": warnings,
    }


def _curve(search: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean measured objective and drift of every epoch that measured something."""
    curve: dict[str, list[float]] = {"epoch": [], "objective": [], "drift": []}
    for entry in search["epochs"]:
        if entry.get("objective"):
            curve["epoch"].append(int(entry["epoch"]))
            curve["objective"].append(_mean(entry["objective"]))
            curve["drift"].append(float(entry["drift"]["relative"]))
    return curve


def _mean(values: Any) -> float:
    return sum(float(v) for v in values) / len(values)


def plot_wide_spectrum(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Measured objective of the sampled architectures, and how far their weights have moved.

    Parameters
    ----------
    curves
        Name of a search to ``epoch``, ``objective`` and ``drift``, lists of equal length.
    """
    canvas = figure(9.6, 3.6)
    left, right = canvas.subplots(1, 2)
    for place, (name, curve) in enumerate(curves.items()):
        colour, marker, style = SERIES[place % len(SERIES)]
        look = {"color": colour, "marker": marker, "linestyle": style, "markersize": 3.5}
        left.plot(curve["epoch"], curve["objective"], label=plain(name), **look)
        right.plot(curve["epoch"], curve["drift"], **look)
    decorate(left, "Objective of sampled architectures", "epoch", "objective (lower is better)")
    decorate(right, "Drift of architecture weights", "epoch", "rms change / initial rms")
    if curves:
        left.legend(fontsize=7.5, frameon=False)
    return canvas


def wide_spectrum_figures(run: Path) -> dict[str, Markup]:
    """The figure ``wide-spectrum`` as inline SVG; nothing for other runs."""
    found = read_wide_spectrum(run)
    if found is None:
        return {}
    from markupsafe import Markup

    from nni_robust.report._svg import inline_svg

    told = "; ".join(
        f"{row['name']}: best objective {row['objective']:.3g}, {row['changed']} of "
        f"{row['choices']} choices changed"
        for row in found["searches"]
    )
    # Safe: matplotlib escapes the texts of its SVG, and inline_svg escapes the description.
    drawn = inline_svg(plot_wide_spectrum(found["curves"]), "fig-wide-spectrum", told + ".")
    return {"wide-spectrum": Markup(drawn)}
