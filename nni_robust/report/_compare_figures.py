"""The figures of a comparison of runs, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from nni_robust.report import _format as fmt
from nni_robust.report._candidates import Labelled
from nni_robust.report._examples import (
    Examples,
    caption,
    describe,
    plot_examples,
    read_run_examples,
)
from nni_robust.report._figures import (
    corruption_figures,
    curve_figures,
    histories,
    inline,
    pareto_group,
)
from nni_robust.report._fronts import plot_pareto
from nni_robust.report._run import is_ok, metric, strongest_attack
from nni_robust.report.drawing import draw_cells
from nni_robust.report.plots import plot_best_so_far, plot_training

__all__ = ["comparison_figures"]

Drawing = tuple[str, Markup]


def comparison_figures(
    items: Sequence[Labelled],
) -> tuple[dict[str, Markup], list[Drawing], list[Drawing], list[str]]:
    """Figures by section; each run's architecture; attacked pictures; sentences about bad files."""
    figures: dict[str, Markup] = {}
    groups, attacks, searches = {}, [], {}
    for label, run, best in items:
        good = [r for r in run.candidates if is_ok(r)]
        robust = strongest_attack(good, run.threat)
        if robust is not None:
            groups[label] = pareto_group(good, robust, best)
            attacks.append(robust)
        if run.candidates:
            ordered = sorted(run.candidates, key=lambda r: fmt.number(r.get("index")) or 0.0)
            searches[label] = [metric(r, "default") if is_ok(r) else None for r in ordered]
    names = ", ".join(item.label for item in items)
    if groups:
        attack = fmt.attack_name(attacks[0]) if len(set(attacks)) == 1 else "each run's strongest"
        figure = plot_pareto(groups, attack=attack)
        figures["tradeoff"] = inline("tradeoff", figure, f"Candidates and fronts of {names}.")
    if searches:
        alt = f"Best score so far over the candidates tried, of {', '.join(searches)}."
        figures["best-so-far"] = inline("best-so-far", plot_best_so_far(searches), alt)
    networks = [
        (label, n) for label, run, _ in items for n in run.networks if n.get("label") == "best"
    ]
    threats = {item.run.threat for item in items}
    norms = {threat.norm for threat in threats if threat is not None}
    if len(norms) <= 1:  # radii of two norms cannot share an axis
        one = threats.pop() if len(threats) == 1 else None
        figures |= curve_figures(networks, one)
    figures |= corruption_figures(networks)
    trained = histories(networks)
    if trained:
        alt = f"Loss, clean and robust accuracy over the epochs of {', '.join(trained)}."
        figures["training"] = inline("training", plot_training(trained), alt)
    drawings = [
        (
            label,
            inline(f"cells-{k}", draw_cells(best["graphs"]), f"Best architecture of {label}."),
        )
        for k, (label, _, best) in enumerate(items)
        if best and best["graphs"]
    ]
    examples, problems = _examples(items)
    return figures, drawings, examples, problems


def _examples(items: Sequence[Labelled]) -> tuple[list[Drawing], list[str]]:
    """Attacked pictures of the runs' best networks; runs with the same pictures in one figure."""
    problems: list[str] = []
    groups: dict[tuple[object, ...], dict[str, Examples]] = {}
    for label, run, _ in items:
        found, bad = read_run_examples(run.folder)
        problems += [f"{label}: {sentence}" for sentence in bad]
        for attack, networks in found.items():
            if "best" in networks:
                best = networks["best"]
                key = (attack, best.clean.shape, best.clean.tobytes())
                groups.setdefault(key, {})[label] = best
    drawings = [
        (
            caption(group),
            inline(f"examples-{k}", plot_examples(group), describe(group)),
        )
        for k, group in enumerate(groups.values())
    ]
    return drawings, problems
