"""What the page of one run says: every section's content, for the template ``run.html.j2``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from nni_robust.report import _format as fmt
from nni_robust.report._candidates import Labelled, candidate_table
from nni_robust.report._compression import compression_figures, read_compression
from nni_robust.report._corruptions import corruption_table
from nni_robust.report._figures import example_figures, make_figures
from nni_robust.report._notes import notes
from nni_robust.report._run import (
    Run,
    attack_keys,
    is_ok,
    metric,
    strongest_attack,
    unreliable,
)
from nni_robust.report._study import read_findings, study_figures
from nni_robust.report._tutors import read_tutors, tutor_figures
from nni_robust.report._wide_spectrum import read_wide_spectrum, wide_spectrum_figures
from nni_robust.report.tables import network_title
from nni_robust.threat import eps_label

__all__ = [
    "best_architecture",
    "check_rows",
    "final_rows",
    "pairs",
    "recipe_text",
    "run_page",
    "section_name",
    "threat_text",
]

_STATES = {
    "finished": "finished",
    "running": "not finished yet: what follows is what is known so far",
    "interrupted": "interrupted: what follows is what was known when it stopped",
    "failed": "failed: what follows is what was known when it stopped",
    "unknown": "of unknown state: what follows is what its folder holds",
}
_SUBTITLES = {
    "best": "the architecture that the search chose, trained in full",
    "random": "an architecture drawn at random, trained in the same way",
    "undefended": "trained on clean pictures only",
}


def run_page(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    best, best_problem = best_architecture(run)
    robust = strongest_attack(run.networks, run.threat)
    examples, bad = example_figures(run.folder)
    return {
        "run": run,
        "state_text": _STATES.get(run.state, _STATES["unknown"]),
        "problems": [*run.problems, *bad],
        "error": str(run.status.get("error") or ""),
        "facts": _facts(run),
        "cards": _cards(run, robust),
        "robust_name": fmt.attack_name(robust) if robust else None,
        "headline": _headline(run, robust),
        "finals": final_rows(run),
        "checks": check_rows(run),
        "corruptions": corruption_table(
            [(network_title(str(n.get("label", fmt.MISSING))), n) for n in run.networks]
        ),
        "candidates": candidate_table([Labelled(run.name, run, best)]),
        "best": best,
        "best_problem": best_problem,
        "figures": {
            **make_figures(run, best),
            **study_figures(run.folder),
            **compression_figures(run.folder),
            **tutor_figures(run.folder),
            **wide_spectrum_figures(run.folder),
        },
        "examples": examples,
        "compression": read_compression(run.folder),
        "findings": read_findings(run.folder),
        "tutors": read_tutors(run.folder),
        "wide": read_wide_spectrum(run.folder),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        if run.config
        else "",
        "versions": pairs(run.status.get("versions")),
        "machine": pairs(run.status.get("machine")),
        "experiments": _experiments(run),
        "notes": notes(run),
    }


def _experiments(run: Run) -> list[dict[str, str]]:
    entries = run.status.get("nni")
    return [
        {"id": str(e.get("id") or fmt.MISSING), "url": str(e.get("url") or "")}
        for e in (entries if isinstance(entries, list) else ())
        if isinstance(e, Mapping)
    ]


def best_architecture(run: Run) -> tuple[dict[str, Any] | None, str]:
    """Facts and cell graphs of ``best.yaml``, or why there are none."""
    path = run.folder / "best.yaml"
    if not path.is_file():
        return None, "No architecture has been chosen yet (there is no best.yaml)."
    try:
        from nni_robust.architecture import load_architecture

        architecture = load_architecture(str(path))
        graphs = architecture.graphs()
        cost = architecture.cost()
    except (
        Exception
    ) as e:  # a report of a run must not fail because its space cannot be loaded here
        return None, f"best.yaml cannot be loaded here: {type(e).__name__}: {e}"
    return {
        "name": architecture.name,
        "space": architecture.space,
        "sample": dict(architecture.sample),
        "graphs": graphs,
        "params": cost.params,
        "macs": cost.macs,
        "input_shape": tuple(architecture.input_shape),
    }, ""


def section_name(section: Any) -> str:
    """Name in a config section that is a plain string or a mapping with a name."""
    if isinstance(section, Mapping):
        return str(section.get("name") or fmt.MISSING)
    return str(section) if section else fmt.MISSING


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was searched, as pairs of a term and its value."""
    facts = []
    if run.task.get("dataset"):
        facts.append(("Data set", str(run.task["dataset"])))
    if run.threat is not None:
        facts.append(("Threat", threat_text(run)))
    for term, key in (
        ("Search space", "space"),
        ("Strategy", "strategy"),
        ("Evaluator", "evaluator"),
    ):
        if run.config.get(key):
            facts.append((term, section_name(run.config[key])))
    if recipe_text(run):
        facts.append(("Final training", recipe_text(run)))
    if run.candidates:
        failed = sum(not is_ok(r) for r in run.candidates)
        facts.append(
            ("Candidates", f"{len(run.candidates)}" + (f", {failed} failed" if failed else ""))
        )
    if "seed" in run.config:
        facts.append(("Seed", str(run.config["seed"])))
    if run.status.get("created"):
        started = str(run.status["created"]).replace("T", " ").replace("+00:00", " UTC")
        facts.append(("Started", started))
    if fmt.number(run.status.get("seconds")) is not None:
        facts.append(("Duration", fmt.duration(run.status["seconds"])))
    return facts


def threat_text(run: Run) -> str:
    """``"L∞, eps 8/255 (0.03137) in pixel units"``; a dash where it is not known."""
    if run.threat is None:
        return fmt.MISSING
    symbol = {"linf": "L∞", "l2": "L2"}[run.threat.norm]
    text, plain = eps_label(run.threat.eps), f"{run.threat.eps:.4g}"
    whole = f"{text} ({plain})" if "/" in text else plain
    return f"{symbol}, eps {whole} in pixel units"


def recipe_text(run: Run) -> str:
    """The final training in a few words, such as ``"pgd, 12 epochs, 3 attack steps"``."""
    final = run.config.get("final")
    train = final.get("train") if isinstance(final, Mapping) else None
    if not isinstance(train, Mapping):
        return ""
    parts = [str(train["loss"])] if train.get("loss") else []
    if fmt.number(train.get("epochs")) is not None:
        parts.append(f"{train['epochs']} epochs")
    attack = train.get("attack")
    if isinstance(attack, Mapping) and fmt.number(attack.get("steps")) is not None:
        parts.append(f"{attack['steps']} attack steps")
    if train.get("averaging"):
        parts.append(f"averaging: {section_name(train['averaging'])}")
    return ", ".join(parts)


def _cards(run: Run, robust: str | None) -> list[dict[str, Any]]:
    return [
        {
            "label": str(network.get("label", "")),
            "title": network_title(str(network.get("label", fmt.MISSING))),
            "subtitle": _SUBTITLES.get(str(network.get("label")), ""),
            "robust": (accuracy := metric(network, robust) if robust else None),
            "interval": fmt.interval(accuracy, network.get("pictures")),
            "clean": metric(network, "clean"),
            "params": metric(network, "params"),
            "macs": metric(network, "macs"),
            "unreliable": unreliable(network),
        }
        for network in run.networks
    ]


def _headline(run: Run, robust: str | None) -> str:
    """One sentence with the result; empty while there is none."""
    found = {str(n.get("label")): metric(n, robust) for n in run.networks} if robust else {}
    if robust is None or found.get("best") is None:
        return ""
    sentence = (
        f"Under {fmt.attack_name(robust)}, the best network found classifies "
        f"{fmt.percent(found['best'])}\u00a0% of the test pictures correctly"
    )
    others = [
        f"{words} {fmt.percent(found[label])}\u00a0%"
        for label, words in (
            ("random", "a random architecture of equal budget"),
            ("undefended", "an undefended network"),
        )
        if found.get(label) is not None
    ]
    doubtful = any(n.get("label") == "best" and unreliable(n) for n in run.networks)
    doubt = " The first figure is unreliable, see below." if doubtful else ""
    return sentence + (f"; {', '.join(others)}." if others else ".") + doubt


def final_rows(run: Run) -> dict[str, Any]:
    attacks = attack_keys(run.networks)
    keys = ["clean", *attacks]
    top = {key: max((metric(n, key) or 0.0 for n in run.networks), default=0.0) for key in keys}
    return {
        "attacks": [fmt.attack_parts(key) for key in attacks],
        "rows": [
            {
                "title": network_title(str(network.get("label", fmt.MISSING))),
                "values": [
                    (value := metric(network, k), value is not None and value == top[k])
                    for k in keys
                ],
                "params": metric(network, "params"),
                "macs": metric(network, "macs"),
                "note": str(network.get("note") or ""),
                "unreliable": unreliable(network),
            }
            for network in run.networks
        ],
    }


def check_rows(run: Run) -> dict[str, Any]:
    """Every check of the final networks' figures: its status for each network, and why."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    titles = []
    for network in run.networks:
        flags = network.get("reliability")
        checks = flags.get("checks") if isinstance(flags, Mapping) else None
        if not isinstance(checks, Mapping):
            continue
        title = network_title(str(network.get("label", fmt.MISSING)))
        titles.append(title)
        for name, check in checks.items():
            if isinstance(check, Mapping):
                told = str(check.get("status") or fmt.MISSING), str(check.get("reason") or "")
                found.setdefault(str(name), {})[title] = told
    missing = (fmt.MISSING, "")
    return {
        "titles": titles,
        "rows": [
            (name, [by.get(title, missing) for title in titles]) for name, by in found.items()
        ],
    }


def pairs(value: Any) -> list[tuple[str, str]]:
    """A mapping as pairs of texts; lists are joined, empty values left out."""
    if not isinstance(value, Mapping):
        return []
    texts = {
        k: (", " if k != "argv" else " ").join(map(str, v)) if isinstance(v, list) else str(v)
        for k, v in value.items()
    }
    return [(str(k), text) for k, text in texts.items() if text]
