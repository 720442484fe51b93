"""The figures of a run's report, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from nni_robust.report import _format as fmt
from nni_robust.report._run import Record, Run, is_ok, metric, strongest_attack
from nni_robust.report._svg import inline_svg
from nni_robust.report.drawing import draw_cells
from nni_robust.report.plots import (
    Highlight,
    plot_eps_curves,
    plot_scores,
    plot_tradeoff,
    plot_training,
)
from nni_robust.report.tables import network_title
from nni_robust.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["is_chosen", "make_figures"]


def is_chosen(record: Record, best: Mapping[str, Any] | None) -> bool:
    return best is not None and bool(best["sample"]) and record.get("sample") == best["sample"]


def make_figures(run: Run, best: Mapping[str, Any] | None) -> dict[str, Markup]:
    """Inline SVG by section; a figure without data is left out."""
    figures: dict[str, Markup] = {}

    def add(name: str, figure: Figure, alt: str) -> None:
        # Safe: matplotlib escapes the texts of its SVG, and inline_svg escapes the description.
        figures[name] = Markup(inline_svg(figure, f"fig-{name}", alt))

    if best and best["graphs"]:
        titles = ", ".join(graph.title for graph in best["graphs"])
        alt = (
            f"Drawing of the best architecture's cells ({titles}): feature maps as boxes, "
            "operations as arrows."
        )
        add("cells", draw_cells(best["graphs"]), alt)

    good = [r for r in run.candidates if is_ok(r)]
    robust = strongest_attack(good, run.threat)
    if robust is not None:
        kind = "macs" if any(metric(r, "macs") for r in good) else "params"
        marks = [
            Highlight(
                "chosen", metric(r, kind) or 0.0, metric(r, robust) or 0.0, metric(r, "clean")
            )
            for r in good
            if is_chosen(r, best)
        ][:1]
        figure = plot_tradeoff(
            [metric(r, kind) for r in good],
            [metric(r, robust) for r in good],
            [metric(r, "clean") for r in good],
            kind=kind,
            attack=fmt.attack_name(robust),
            highlights=marks,
        )
        alt = (
            "Two scatter plots of the candidates: robust accuracy against cost and against clean "
            "accuracy, with their Pareto fronts. The numbers are in the table of candidates."
        )
        add("tradeoff", figure, alt)
    if run.candidates:
        scores = [
            (int(r.get("index", i)), metric(r, "default") if is_ok(r) else None)
            for i, r in enumerate(run.candidates)
        ]
        alt = "Score of each candidate in the order of the trials, with the best so far."
        add("scores", plot_scores(scores), alt)

    curves = {}
    for network in run.networks:
        points = _curve(network.get("eps_curve"))
        if points:
            curves[network_title(str(network.get("label")))] = points
    if curves:
        threat = run.threat or ThreatModel(eps=0)
        figure = plot_eps_curves(curves, norm=threat.norm, eps=threat.eps or None)
        add("eps", figure, f"Accuracy against eps for {', '.join(curves)}.")

    # The final networks come first, so that they have the colours of the eps curves.
    histories = {network_title(str(n.get("label"))): n.get("history") for n in run.networks}
    for record in run.supernets:
        name = "supernet" if len(run.supernets) == 1 else f"supernet {record.get('index', '')}"
        histories[name] = record.get("history")
    trained = {
        name: [epoch for epoch in history if isinstance(epoch, Mapping)]
        for name, history in histories.items()
        if isinstance(history, Sequence) and history
    }
    if trained:
        alt = f"Loss, clean and robust accuracy over the epochs of {', '.join(trained)}."
        add("training", plot_training(trained), alt)
    return figures


def _curve(points: Any) -> list[tuple[float, float | None]]:
    """Points (eps, accuracy) of a record; entries of another form are left out."""
    return [
        (eps, fmt.number(point[1]))
        for point in (points if isinstance(points, Sequence) else ())
        if isinstance(point, Sequence)
        and len(point) == 2
        and (eps := fmt.number(point[0])) is not None
    ]
