"""The findings about a run's candidates: their sentences and their figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nni_robust.errors import UserError
from nni_robust.store import read_json

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["read_findings", "study_figures"]


def read_findings(run: str | Path) -> list[str]:
    """One sentence per finding, from ``findings.json``; none where that is missing or damaged."""
    try:
        content = read_json(Path(run) / "findings.json")
        return [str(sentence) for sentence in content["sentences"]]
    except (UserError, KeyError, TypeError):
        return []


def study_figures(run: Path) -> dict[str, Markup]:
    """The five figures of a study as inline SVG, drawn from ``study.csv``.

    Returns
    -------
    dict
        By section of the report; empty without findings, or where the study cannot be read.
    """
    if not read_findings(run) or not (run / "study.csv").is_file():
        return {}
    from markupsafe import Markup

    from nni_robust.analysis import load_study, study_findings
    from nni_robust.report import findings as draw
    from nni_robust.report._svg import inline_svg

    try:
        rows = load_study(run / "study.csv")
        found = study_findings(rows, seed=int(read_json(run / "findings.json").get("seed", 0)))
    except (UserError, TypeError, ValueError):
        return {}
    first, second, third = found.sentences
    figures = {
        "density": (draw.plot_density(rows, found.density), first),
        "probe": (draw.plot_probe(found.density.probe), f"Linear probe. {first}"),
        "budget": (draw.plot_budget(rows, found.budget), second),
    }
    if found.fsp.n:
        figures["fsp-cells"] = (draw.plot_fsp_correlation(found.fsp), third)
        figures["fsp-gap"] = (draw.plot_fsp_gap(rows), f"Each candidate. {third}")
    # Safe: matplotlib escapes the texts of its SVG, and inline_svg escapes the description.
    return {
        name: Markup(inline_svg(figure, f"fig-{name}", alt))
        for name, (figure, alt) in figures.items()
    }
