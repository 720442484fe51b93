"""The candidates of one or several runs as rows of the report's table."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nni_robust.analysis.pareto import pareto_front
from nni_robust.report import _format as fmt
from nni_robust.report._run import (
    Record,
    Run,
    attack_keys,
    is_chosen,
    is_ok,
    metric,
    strongest_attack,
    unreliable,
)
from nni_robust.report.tables import code_text, ranked, to_csv

__all__ = ["FRONTS", "Labelled", "candidate_table", "fronts"]

#: Letter of a front, what it weighs, and which way each counts; ``robust`` is the run's strongest.
FRONTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "M": ("robust accuracy and MACs", {"robust": "max", "macs": "min"}),
    "P": ("robust accuracy and parameters", {"robust": "max", "params": "min"}),
    "C": ("robust and clean accuracy", {"robust": "max", "clean": "max"}),
    "3": (
        "robust accuracy, clean accuracy and MACs together",
        {"robust": "max", "clean": "max", "macs": "min"},
    ),
}


class Labelled(NamedTuple):
    """A run, what it is called on the page, and its best architecture."""

    label: str
    run: Run
    best: Mapping[str, Any] | None


def fronts(records: Sequence[Record], robust: str | None) -> list[str]:
    """Letters of the fronts that each record is on, such as ``"MC3"``."""
    found = [""] * len(records)
    if robust is None:
        return found
    for letter, (_, directions) in FRONTS.items():
        points = [
            [_or_nan(metric(r, robust if key == "robust" else key)) for key in directions]
            for r in records
        ]
        ways: Any = list(directions.values())
        for i in pareto_front(points, ways):
            found[i] += letter
    return found


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def candidate_table(runs: Sequence[Labelled]) -> dict[str, Any]:
    """Rows of all candidates, best score first; fronts are those of each run alone."""
    attacks = attack_keys(r for item in runs for r in ranked(item.run.candidates))
    rows: list[dict[str, Any]] = []
    for label, run, best in runs:
        records = ranked(run.candidates)
        on = fronts(records, strongest_attack(records, run.threat))
        rows += [
            {
                "run": label,
                "index": record.get("index", fmt.MISSING),
                "place": fmt.number(record.get("index")),
                "code": code_text(record),
                "ok": is_ok(record),
                "error": str(record.get("error") or ""),
                "chosen": is_chosen(record, best),
                "fronts": letters,
                "score": metric(record, "default") if is_ok(record) else None,
                "clean": metric(record, "clean"),
                "attacked": [metric(record, key) for key in attacks],
                "params": metric(record, "params"),
                "macs": metric(record, "macs"),
                "seconds": metric(record, "seconds"),
                "unreliable": unreliable(record),
            }
            for record, letters in zip(records, on, strict=True)
        ]
    rows.sort(key=lambda row: float("inf") if row["score"] is None else -row["score"])
    used = {letter for row in rows for letter in row["fronts"]}
    return {
        "attacks": [fmt.attack_parts(key) for key in attacks],
        "fronts": {letter: what for letter, (what, _) in FRONTS.items() if letter in used},
        "rows": rows,
        "several": len(runs) > 1,
        "failed": sum(not row["ok"] for row in rows),
        "doubtful": sum(bool(row["unreliable"]) for row in rows),
        "csv": base64.b64encode(_csv(runs).encode()).decode(),
    }


def _csv(runs: Sequence[Labelled]) -> str:
    if len(runs) == 1:
        run = runs[0].run
        return to_csv((*run.supernets, *run.candidates))
    return to_csv(
        {"run": label, **record}
        for label, run, _ in runs
        for record in (*run.supernets, *run.candidates)
    )
