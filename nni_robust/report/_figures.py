"""The figures of a run's report, as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from nni_robust.report import _format as fmt
from nni_robust.report._choices import plot_choices
from nni_robust.report._corruptions import clean_accuracy, plot_corruptions, read_corruptions
from nni_robust.report._examples import (
    Examples,
    caption,
    describe,
    plot_examples,
    read_run_examples,
)
from nni_robust.report._fronts import Candidates, plot_pareto
from nni_robust.report._run import Record, Run, is_chosen, is_ok, metric, strongest_attack
from nni_robust.report._svg import inline_svg
from nni_robust.report.drawing import draw_cells
from nni_robust.report.plots import (
    plot_eps_curves,
    plot_scores,
    plot_steps_curves,
    plot_training,
)
from nni_robust.report.tables import network_title
from nni_robust.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "corruption_figures",
    "curve_figures",
    "curve_points",
    "example_figures",
    "histories",
    "inline",
    "make_figures",
    "pareto_group",
]


#: What is drawn of an epoch.
_EPOCH = ("epoch", "loss", "val_clean", "val_robust")


def inline(name: str, figure: Figure, alt: str) -> Markup:
    """A figure as markup of the page; its ids begin with ``fig-<name>-``."""
    # Safe: matplotlib escapes the texts of its SVG, and inline_svg escapes the description.
    return Markup(inline_svg(figure, f"fig-{name}", alt))


def make_figures(run: Run, best: Mapping[str, Any] | None) -> dict[str, Markup]:
    """Inline SVG by section; a figure without data is left out."""
    figures: dict[str, Markup] = {}

    def add(name: str, figure: Figure, alt: str) -> None:
        figures[name] = inline(name, figure, alt)

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
        alt = (
            "Scatter plots of the candidates: robust accuracy against MACs, parameters and clean "
            "accuracy, with their Pareto fronts. The numbers are in the table of candidates."
        )
        figure = plot_pareto({"": pareto_group(good, robust, best)}, attack=fmt.attack_name(robust))
        add("tradeoff", figure, alt)
    if run.candidates:
        scores = [
            (int(fmt.number(r.get("index")) or i), metric(r, "default") if is_ok(r) else None)
            for i, r in enumerate(run.candidates)
        ]
        alt = "Score of each candidate in the order of the trials, with the best so far."
        add("scores", plot_scores(scores), alt)
    scored = [
        (r["sample"], value)
        for r in good
        if isinstance(r.get("sample"), Mapping) and (value := metric(r, "default")) is not None
    ]
    chosen = best["sample"] if best else None
    choices = plot_choices([s for s, _ in scored], [value for _, value in scored], chosen)
    if choices is not None:
        alt = "Share of the best quarter of the candidates that takes each option of each choice."
        add("choices", choices, alt)

    figures |= curve_figures(
        [(network_title(str(n.get("label"))), n) for n in run.networks], run.threat
    )
    figures |= corruption_figures([(network_title(str(n.get("label"))), n) for n in run.networks])
    trained = histories(
        # The final networks come first, so that they have the colours of the eps curves.
        [(network_title(str(n.get("label"))), n) for n in run.networks]
        + [
            ("supernet" if len(run.supernets) == 1 else f"supernet {r.get('index', '')}", r)
            for r in run.supernets
        ]
    )
    if trained:
        alt = f"Loss, clean and robust accuracy over the epochs of {', '.join(trained)}."
        add("training", plot_training(trained), alt)
    return figures


def pareto_group(
    records: Sequence[Record], robust: str, best: Mapping[str, Any] | None
) -> Candidates:
    """Candidates with metrics, as the figure of the fronts wants them."""
    chosen = [i for i, r in enumerate(records) if is_chosen(r, best)]
    return Candidates(
        robust=[metric(r, robust) for r in records],
        clean=[metric(r, "clean") for r in records],
        macs=[metric(r, "macs") for r in records],
        params=[metric(r, "params") for r in records],
        chosen=chosen[0] if chosen else None,
    )


def curve_figures(
    networks: Sequence[tuple[str, Record]], threat: ThreatModel | None
) -> dict[str, Markup]:
    """Accuracy by eps and by steps, of networks by their names; what is not known is left out."""
    figures = {}
    threat = threat or ThreatModel(eps=0)
    by_eps = {name: p for name, n in networks if (p := curve_points(n.get("eps_curve")))}
    if by_eps:
        figure = plot_eps_curves(by_eps, norm=threat.norm, eps=threat.eps or None)
        figures["eps"] = inline("eps", figure, f"Accuracy against eps for {', '.join(by_eps)}.")
    by_steps = {
        name: points
        for name, n in networks
        if (points := [p for p in curve_points(n.get("steps_curve")) if p[0] >= 1])
    }
    if by_steps:
        figure = plot_steps_curves(by_steps, eps=threat.eps or None)
        alt = f"Accuracy against the number of attack steps for {', '.join(by_steps)}."
        figures["steps"] = inline("steps", figure, alt)
    return figures


def corruption_figures(networks: Sequence[tuple[str, Record]]) -> dict[str, Markup]:
    """Accuracy by severity of each common corruption, of networks that have any."""
    found = {name: read for name, n in networks if (read := read_corruptions(n))}
    if not found:
        return {}
    known = {name: c for name, n in networks if (c := clean_accuracy(n)) is not None}
    alt = (
        f"Accuracy against the severity of each common corruption for {', '.join(found)}. Means "
        "are in the table."
    )
    return {"corruptions": inline("corruptions", plot_corruptions(found, clean=known), alt)}


def histories(named: Iterable[tuple[str, Record]]) -> dict[str, list[Mapping[str, Any]]]:
    """Epoch records by name, where there are any."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, record in named:
        history = record.get("history")
        epochs = [e for e in history if isinstance(e, Mapping)] if isinstance(history, list) else []
        if epochs:
            found[name] = [
                {key: value for key in _EPOCH if (value := fmt.number(epoch.get(key))) is not None}
                for epoch in epochs
            ]
    return found


def curve_points(points: Any) -> list[tuple[float, float | None]]:
    """Points (eps or steps, accuracy) of a record; entries of another form are left out."""
    return [
        (x, fmt.number(point[1]))
        for point in (points if isinstance(points, Sequence) else ())
        if isinstance(point, Sequence)
        and len(point) == 2
        and (x := fmt.number(point[0])) is not None
    ]


def example_figures(run: Path) -> tuple[list[tuple[str, Markup]], list[str]]:
    """Attacked pictures of a run: (caption, figure) pairs, and sentences about bad files."""
    found, problems = read_run_examples(run)
    drawn: list[tuple[str, Markup]] = []
    for networks in found.values():
        for group in _same_pictures({network_title(k): v for k, v in networks.items()}):
            figure = inline(f"examples-{len(drawn)}", plot_examples(group), describe(group))
            drawn.append((caption(group), figure))
    return drawn, problems


def _same_pictures(networks: Mapping[str, Examples]) -> list[dict[str, Examples]]:
    """The networks in groups whose examples are of the same pictures."""
    groups: dict[tuple[Any, ...], dict[str, Examples]] = {}
    for name, examples in networks.items():
        key = (examples.clean.shape, tuple(examples.index.tolist()))
        groups.setdefault(key, {})[name] = examples
    return list(groups.values())
