"""What the page of several runs says: what differs between them, and how they fared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nni_robust.report import _format as fmt
from nni_robust.report._candidates import Labelled, candidate_table
from nni_robust.report._compare_figures import comparison_figures
from nni_robust.report._corruptions import corruption_table
from nni_robust.report._differences import differences, incomparable
from nni_robust.report._page import (
    best_architecture,
    final_rows,
    pairs,
    recipe_text,
    section_name,
    threat_text,
)
from nni_robust.report._run import Run, attack_keys, is_ok, metric, strongest_attack, unreliable

__all__ = ["comparison_page", "run_labels"]


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A name of its own for each run: the run's, else with its folder's, else with its path."""
    names = [run.name for run in runs]
    folders = [run.folder.resolve() for run in runs]
    for wider in (lambda f: f.name, lambda f: str(f)):
        repeated = {name for name in names if names.count(name) > 1}
        names = [
            name if name not in repeated else f"{run.name} ({wider(folder)})"
            for name, run, folder in zip(names, runs, folders, strict=True)
        ]
    return names


def comparison_page(runs: Sequence[Run], path: Path) -> dict[str, Any]:
    """Everything that the template ``comparison.html.j2`` shows.

    Parameters
    ----------
    runs
        Two or more runs.
    path
        Where the page will lie; links to the runs' own reports are relative to it.
    """
    labels = run_labels(runs)
    found = [best_architecture(run) for run in runs]
    labelled = [Labelled(n, run, b) for n, run, (b, _) in zip(labels, runs, found, strict=True)]
    networks = [{"label": n, **_best_network(run)} for n, run in zip(labels, runs, strict=True)]
    robust = strongest_attack(networks, runs[0].threat)
    weighty = incomparable(runs)
    figures, drawings, examples, bad = comparison_figures(labelled)
    return {
        "labels": labels,
        "incomparable": weighty,
        "problems": [
            f"{label}: {problem}"
            for label, run in zip(labels, runs, strict=True)
            for problem in (*run.problems, *_state(run))
        ]
        + bad,
        "robust_name": fmt.attack_name(robust) if robust else "",
        "rows": [_row(item, path, robust) for item in labelled],
        "attack": fmt.attack_parts(robust) if robust else ("robust", ""),
        "differences": differences(labels, [run.config for run in runs]),
        "version_differences": differences(
            labels, [_mapping(run.status.get("versions")) for run in runs]
        ),
        "finals": _finals(labelled, bold=not weighty),
        "corruptions": corruption_table(
            [(n, _best_network(run)) for n, run in zip(labels, runs, strict=True)]
        ),
        "candidates": candidate_table(labelled),
        "figures": figures,
        "drawings": drawings,
        "examples": examples,
        "settings": [_settings(item) for item in labelled],
        "headline": _headline(networks, robust, bool(weighty)),
    }


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _state(run: Run) -> list[str]:
    return [] if run.state in ("finished", "unknown") else [f"this run is {run.state}."]


def _best_network(run: Run) -> dict[str, Any]:
    """The final network of the winner; without one, none of its figures are known."""
    best = [n for n in run.networks if n.get("label") == "best"]
    return {k: v for k, v in best[0].items() if k != "label"} if best else {"metrics": {}}


def _row(item: Labelled, path: Path, robust: str | None) -> dict[str, Any]:
    """A line of the summary."""
    run, network = item.run, _best_network(item.run)
    failed = sum(not is_ok(r) for r in run.candidates)
    report = run.folder / "report.html"
    link = os.path.relpath(report.resolve(), path.resolve().parent) if report.is_file() else ""
    return {
        "label": item.label,
        "link": Path(link).as_posix() if link else "",
        "folder": str(run.folder),
        "state": run.state,
        "dataset": str(run.task.get("dataset") or fmt.MISSING),
        "threat": threat_text(run).removesuffix(" in pixel units"),
        "space": section_name(run.config.get("space")),
        "strategy": section_name(run.config.get("strategy")),
        "recipe": recipe_text(run) or fmt.MISSING,
        "seed": fmt.number(run.config.get("seed")),
        "seed_text": str(run.config.get("seed", fmt.MISSING)),
        "candidates": len(run.candidates),
        "failed": failed,
        "clean": metric(network, "clean"),
        "robust": (accuracy := metric(network, robust) if robust else None),
        "interval": fmt.interval(accuracy, network.get("pictures")),
        "params": metric(network, "params"),
        "macs": metric(network, "macs"),
        "pictures": fmt.number(network.get("pictures")),
        "seconds": fmt.number(run.status.get("seconds")),
        "unreliable": unreliable(network),
    }


def _headline(networks: Sequence[Mapping[str, Any]], robust: str | None, weighty: bool) -> str:
    """One sentence with the result; none where the figures may not be compared."""
    if robust is None:
        return "No run has tested its best network yet."
    if weighty:
        return "These runs differ in more than their search: read what differs before any figure."
    known = [(v, str(n["label"])) for n in networks if (v := metric(n, robust)) is not None]
    known.sort(key=lambda pair: -pair[0])
    told = ", ".join(f"{label} {fmt.percent(value)}\u00a0%" for value, label in known[:4])
    return f"Robust accuracy of the best network under {fmt.attack_name(robust)}: {told}."


def _finals(items: Sequence[Labelled], *, bold: bool) -> dict[str, Any]:
    """All final networks of all runs; the highest figures are bold where they may be compared."""
    keys = ["clean", *attack_keys(n for item in items for n in item.run.networks)]
    rows = []
    for item in items:
        own = final_rows(item.run)["rows"]
        for row, network in zip(own, item.run.networks, strict=True):
            values = [(metric(network, key), False) for key in keys]
            rows.append({**row, "run": item.label, "values": values})
    if bold:
        for column in range(len(keys)):
            top = max((v for r in rows if (v := r["values"][column][0]) is not None), default=None)
            for row in rows:
                value = row["values"][column][0]
                row["values"][column] = (value, value is not None and value == top)
    return {"attacks": [fmt.attack_parts(key) for key in keys[1:]], "rows": rows}


def _settings(item: Labelled) -> dict[str, Any]:
    config = item.run.config
    return {
        "label": item.label,
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        "versions": pairs(item.run.status.get("versions")),
        "machine": pairs(item.run.status.get("machine")),
    }
