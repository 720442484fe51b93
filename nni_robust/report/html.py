"""The report of a run: one HTML file without outside references, also of an unfinished run."""

from __future__ import annotations

import base64
import datetime
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

import nni_robust
from nni_robust.analysis.pareto import pareto_front
from nni_robust.errors import UserError
from nni_robust.report import _format as fmt
from nni_robust.report._compression import compression_figures, read_compression
from nni_robust.report._figures import is_chosen, make_figures
from nni_robust.report._run import (
    Run,
    attack_keys,
    is_ok,
    metric,
    read_run,
    strongest_attack,
    unreliable,
)
from nni_robust.report._study import read_findings, study_figures
from nni_robust.report._tutors import read_tutors, tutor_figures
from nni_robust.report._wide_spectrum import read_wide_spectrum, wide_spectrum_figures
from nni_robust.report.tables import code_text, network_title, ranked, to_csv
from nni_robust.store import write_text
from nni_robust.threat import eps_label

__all__ = ["build_report"]

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


def build_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the HTML report of a run.

    Parameters
    ----------
    run_folder
        Run folder; whatever it holds already is shown, and what is missing is named.
    out
        File to write; by default ``report.html`` in the run folder.

    Returns
    -------
    pathlib.Path
        The written file. It needs no network and no other file.

    Raises
    ------
    UserError
        If `run_folder` is no run folder, or `out` cannot be written.
    """
    run = read_run(run_folder)
    path = Path(out) if out is not None else run.folder / "report.html"
    page = _render(_context(run))
    try:
        write_text(path, page)
    except OSError as e:
        raise UserError(f"cannot write the report '{path}': {e.strerror or e}") from None
    return path


def _render(context: Mapping[str, Any]) -> str:
    source = importlib.resources.files("nni_robust.report").joinpath("template.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=fmt.percent, count=fmt.count, exact=fmt.exact, duration=fmt.duration
    )
    return environment.from_string(source.read_text(encoding="utf-8")).render(context)


def _context(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    best, best_problem = _best_architecture(run)
    robust = strongest_attack(run.networks, run.threat)
    made = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "run": run,
        "state_text": _STATES.get(run.state, _STATES["unknown"]),
        "version": nni_robust.__version__,
        "made": made,
        "facts": _facts(run),
        "cards": _cards(run, robust),
        "robust_name": fmt.attack_name(robust) if robust else None,
        "headline": _headline(run, robust),
        "finals": _finals(run),
        "candidates": _candidates(run, best),
        "csv": base64.b64encode(to_csv((*run.supernets, *run.candidates)).encode()).decode(),
        "best": best,
        "best_problem": best_problem,
        "figures": {
            **make_figures(run, best),
            **study_figures(run.folder),
            **compression_figures(run.folder),
            **tutor_figures(run.folder),
            **wide_spectrum_figures(run.folder),
        },
        "compression": read_compression(run.folder),
        "findings": read_findings(run.folder),
        "tutors": read_tutors(run.folder),
        "wide": read_wide_spectrum(run.folder),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        if run.config
        else "",
        "versions": _pairs(run.status.get("versions")),
        "machine": _pairs(run.status.get("machine")),
        "experiments": [e for e in run.status.get("nni") or [] if isinstance(e, Mapping)],
        "notes": _notes(run),
    }


def _best_architecture(run: Run) -> tuple[dict[str, Any] | None, str]:
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


def _name(section: Any) -> str:
    """Name in a config section that is a plain string or a mapping with a name."""
    if isinstance(section, Mapping):
        return str(section.get("name") or fmt.MISSING)
    return str(section) if section else fmt.MISSING


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was searched, as pairs of a term and its value."""
    threat, facts = run.threat, []
    if run.task.get("dataset"):
        facts.append(("Data set", str(run.task["dataset"])))
    if threat is not None:
        symbol = {"linf": "L∞", "l2": "L2"}[threat.norm]
        text, plain = eps_label(threat.eps), f"{threat.eps:.4g}"
        whole = f"{text} ({plain})" if "/" in text else plain
        facts.append(("Threat", f"{symbol}, eps {whole} in pixel units"))
    for term, key in (
        ("Search space", "space"),
        ("Strategy", "strategy"),
        ("Evaluator", "evaluator"),
    ):
        if run.config.get(key):
            facts.append((term, _name(run.config[key])))
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


def _cards(run: Run, robust: str | None) -> list[dict[str, Any]]:
    return [
        {
            "label": str(network.get("label", "")),
            "title": network_title(str(network.get("label", fmt.MISSING))),
            "subtitle": _SUBTITLES.get(str(network.get("label")), ""),
            "robust": metric(network, robust) if robust else None,
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


def _finals(run: Run) -> dict[str, Any]:
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


def _candidates(run: Run, best: Mapping[str, Any] | None) -> dict[str, Any]:
    records = ranked(run.candidates)
    attacks = attack_keys(records)
    robust = strongest_attack(records, run.threat)
    front: set[int] = set()
    if robust is not None:
        points = [
            (
                metric(r, "macs") or float("nan"),
                float("nan") if (v := metric(r, robust)) is None else v,
            )
            for r in records
        ]
        front = set(pareto_front(points, ("min", "max")))
    return {
        "attacks": [fmt.attack_parts(key) for key in attacks],
        "robust": fmt.attack_name(robust) if robust else "",
        "rows": [
            {
                "index": record.get("index", fmt.MISSING),
                "code": code_text(record),
                "ok": is_ok(record),
                "error": str(record.get("error") or ""),
                "chosen": is_chosen(record, best),
                "front": i in front,
                "score": metric(record, "default"),
                "clean": metric(record, "clean"),
                "attacked": [metric(record, key) for key in attacks],
                "params": metric(record, "params"),
                "macs": metric(record, "macs"),
                "seconds": metric(record, "seconds"),
                "unreliable": unreliable(record),
            }
            for i, record in enumerate(records)
        ],
    }


def _pairs(value: Any) -> list[tuple[str, str]]:
    """A mapping as pairs of texts; lists are joined, empty values left out."""
    if not isinstance(value, Mapping):
        return []
    texts = {
        k: (", " if k != "argv" else " ").join(map(str, v)) if isinstance(v, list) else str(v)
        for k, v in value.items()
    }
    return [(str(k), text) for k, text in texts.items() if text]


def _notes(run: Run) -> list[str]:
    """How to read the numbers."""
    tested = [n for network in run.networks if (n := fmt.number(network.get("pictures")))]
    of_test = f", n = {tested[0]:,.0f}" if tested else ""
    limit = fmt.number(run.task.get("validation_limit"))
    of_validation = f", n = {limit:,.0f}" if limit else ""
    meaning = "the largest change of any pixel that the attacker may make"
    if run.threat is not None and run.threat.norm == "l2":
        meaning = "the largest Euclidean length of the attacker's change of one picture"
    return [
        f"Accuracies of the final networks: on the test split{of_test}, which the search never "
        "sees.",
        "Scores of candidates and training curves: on the search-validation split"
        f"{of_validation}, a part of the training pictures; candidates are trained briefly, so "
        "these numbers compare candidates with one another and with nothing else.",
        "Robust accuracy is the share of pictures that are classified correctly after the named "
        "attack. A stronger attack can only lower it: it is an upper bound.",
        _reliability_note(run),
        "MACs are multiply-accumulates of convolutions and linear layers for one picture; "
        "parameters are the trainable ones.",
        f"eps is {meaning}, in units of pixels that lie in [0, 1].",
    ]


def _reliability_note(run: Run) -> str:
    """What the marks say, or that nobody looked."""
    records = (*run.networks, *run.candidates)
    checked = [r for r in records if isinstance(r.get("reliability"), Mapping)]
    if not checked:
        return "The records of this run do not say whether their figures were checked."
    bad = sum(bool(unreliable(r)) for r in checked)
    marked = f"{bad} of {len(checked)} are marked" if bad else f"none of {len(checked)} is marked"
    return (
        "Every figure comes with checks of whether the attacks could work on that network (does it "
        "answer the same when asked again, has it gradients, do stronger attacks lower accuracy, "
        f"…). Where one failed the figure is marked unreliable: {marked}."
    )
