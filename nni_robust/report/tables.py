"""Candidates and final networks as tables for the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nni_robust.report._format import MISSING, attack_name, count, duration, percent
from nni_robust.report._run import Record, attack_keys, is_ok, metric, unreliable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["candidates_table", "code_text", "final_table", "network_title", "ranked", "to_csv"]

_TITLES = {
    "best": "Best found",
    "random": "Random, equal budget",
    "undefended": "Undefended",
}


def network_title(label: str) -> str:
    """What a network of the final evaluation is called in tables: ``"best"`` → ``"Best found"``."""
    return _TITLES.get(label, label)


def ranked(records: Iterable[Record]) -> list[Record]:
    """Records by falling score; those without a score (failed trials) come last, in their order."""
    return sorted(
        records,
        key=lambda r: (
            -score if is_ok(r) and (score := metric(r, "default")) is not None else float("inf")
        ),
    )


def code_text(record: Record) -> str:
    """An architecture's code as text: cells joined by spaces; its key where it has no code."""
    code = record.get("code")
    if isinstance(code, str) and code:
        return code
    if isinstance(code, Sequence) and code and not isinstance(code, str):
        return " ".join(map(str, code))
    return str(record.get("key") or MISSING)


def _shorten(text: str, length: int = 24) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def candidates_table(records: Iterable[Record], *, limit: int | None = None) -> Table:
    """Table of the candidates for the terminal, best score first.

    Parameters
    ----------
    records
        Records of ``candidates.jsonl``; those of a supernet are left out.
    limit
        Show only that many rows and say how many more there are; None shows all.

    Returns
    -------
    rich.table.Table
        Accuracies in percent (search-validation split), parameters and MACs with k, M, G.
    """
    from rich.table import Table
    from rich.text import Text

    candidates = ranked(r for r in records if r.get("phase", "candidate") == "candidate")
    shown = candidates[:limit]
    attacks = attack_keys(candidates)
    table = Table(title="Candidates (validation split, accuracy in %)", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("code")
    for heading in ("score", "clean", *map(attack_name, attacks), "params", "MACs", "time"):
        table.add_column(Text(heading), justify="right")
    for record in shown:
        name = (_marked(record.get("index", MISSING), record), Text(_shorten(code_text(record))))
        if is_ok(record):
            table.add_row(
                *name,
                *(percent(metric(record, key)) for key in ("default", "clean", *attacks)),
                *(count(metric(record, key)) for key in ("params", "macs")),
                duration(metric(record, "seconds")),
            )
        else:
            blank = [MISSING] * (len(attacks) + 4)
            table.add_row(*name, Text("failed", style="red"), *blank)
    hidden = len(candidates) - len(shown)
    if hidden:
        table.caption = f"and {hidden} more"
    return table


def final_table(final: Mapping[str, Any]) -> Table:
    """Table of the retrained networks for the terminal.

    Parameters
    ----------
    final
        Contents of ``final.json``.

    Returns
    -------
    rich.table.Table
        Accuracies in percent (test split), parameters and MACs with k, M, G.
    """
    from rich.table import Table
    from rich.text import Text

    networks = [n for n in final.get("networks") or [] if isinstance(n, Mapping)]
    attacks = attack_keys(networks)
    table = Table(title="Networks (test split, accuracy in %)", title_justify="left")
    table.add_column("network")
    for heading in ("clean", *map(attack_name, attacks), "params", "MACs"):
        table.add_column(Text(heading), justify="right")
    for network in networks:
        table.add_row(
            _marked(network_title(str(network.get("label", MISSING))), network),
            *(percent(metric(network, key)) for key in ("clean", *attacks)),
            *(count(metric(network, key)) for key in ("params", "macs")),
        )
    return table


def _marked(text: Any, record: Record) -> Text:
    """A name, with a mark where the figures beside it are unreliable."""
    from rich.text import Text

    return Text(f"{text} (UNRELIABLE)", style="red") if unreliable(record) else Text(str(text))


def to_csv(records: Iterable[Record]) -> str:
    """Every record as CSV, plain numbers (accuracies in [0, 1], exact counts), in the given order.

    Parameters
    ----------
    records
        Records of ``candidates.jsonl``. Codes of several cells and samples are written as JSON,
        checks that failed by their names at ``unreliable``;
        records of several runs have their run's name at ``run``.
    """
    rows = list(records)
    several = ("run",) if any("run" in row for row in rows) else ()
    fixed = (*several, "phase", "index", "key", "trial", "status", "code")
    metrics: dict[str, None] = {}
    for row in rows:
        if isinstance(row.get("metrics"), Mapping):
            metrics.update(dict.fromkeys(row["metrics"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fixed, *metrics, "unreliable", "sample", "error"])
    for row in rows:
        values = row["metrics"] if isinstance(row.get("metrics"), Mapping) else {}
        writer.writerow(
            [
                *(_cell(row.get(key)) for key in fixed),
                *(_cell(values.get(key)) for key in metrics),
                _flags(row),
                _cell(row.get("sample")),
                _cell(row.get("error")),
            ]
        )
    return out.getvalue()


def _flags(record: Record) -> str:
    """Names of the checks that failed, with semicolons; ``not checked`` where none is recorded."""
    if not isinstance(record.get("reliability"), Mapping):
        return "not checked" if record.get("metrics") else ""
    return ";".join(reason.split(":", 1)[0] for reason in unreliable(record))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
