"""The tables of a sweep: a row for every run, and mean and spread over seeds.

Figures keep their flags: columns ``… reliability`` of a run name the checks that failed (empty:
none did; ``unknown``: nobody checked), columns ``… unreliable`` of a mean count the runs behind it
of which one failed, columns ``… unknown`` those that were not checked.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.architecture import load_architecture
from nni_robust.flags import UNKNOWN, flags_of, merge_flags, parse_flags, show_flags
from nni_robust.store import read_json, read_records, write_json, write_text

from ._final import best_candidate

if TYPE_CHECKING:
    from .sweep import Run, Sweep

__all__ = ["doubtful_runs", "write_tables"]

#: The axis over which means are taken.
_SEED = "seed"

#: Ends the name of the column with the flags of the columns before it.
_FLAGS = " reliability"


def write_tables(folder: Path, sweep: Sweep, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Write ``table.csv``, ``summary.csv``, ``summary.json``, and the comparison where one is due.

    Returns
    -------
    The rows of ``table.csv``.
    """
    rows = [{**run.values, **_row(folder / run.folder)} for run in runs]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    _write_csv(folder / "table.csv", columns, rows)
    axes = [axis for axis in sweep.axes if axis != _SEED]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "finished":
            groups.setdefault(tuple(str(row[axis]) for axis in axes), []).append(row)
    numbers = [c for c in columns if c not in sweep.axes and c != "status"]
    summary = []
    for values, members in groups.items():
        entry: dict[str, Any] = {**dict(zip(axes, values, strict=True)), "n": len(members)}
        for column in numbers:
            found = [m[column] for m in members if isinstance(m.get(column), (int, float))]
            if found:
                entry[column] = round(statistics.fmean(found), 6)
                entry[f"{column} sd"] = (
                    round(statistics.stdev(found), 6) if len(found) > 1 else None
                )
        entry.update(_doubts(columns, members))
        summary.append(entry)
    names = list(dict.fromkeys(key for entry in summary for key in entry))
    _write_csv(folder / "summary.csv", names, summary)
    write_json(folder / "summary.json", summary)
    if sweep.compare is not None:
        _write_comparison(folder, sweep, runs)
    return rows


def doubtful_runs(runs: Sequence[Run], rows: Sequence[dict[str, Any]]) -> str | None:
    """One line that names the runs with unreliable figures; None where there are none.

    Parameters
    ----------
    runs
        All runs.
    rows
        Their rows of ``table.csv``.
    """
    found = []
    for run, row in zip(runs, rows, strict=True):
        texts = (value for column, value in row.items() if column.endswith(_FLAGS))
        failed = merge_flags(map(parse_flags, texts))
        if failed:
            found.append(f"{run.folder} ({', '.join(failed)})")
    if not found:
        return None
    return (
        f"UNRELIABLE: {len(found)} of {len(runs)} runs have figures that failed a check, and so "
        f"have the means with them: {'; '.join(found)}"
    )


def _doubts(columns: Sequence[str], members: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Of each set of figures: how many runs are unreliable, and of how many it is not known."""
    found: dict[str, int] = {}
    for column in columns:
        texts = [str(m[column]) for m in members if column.endswith(_FLAGS) and column in m]
        if texts:
            name, unknown = column.removesuffix(_FLAGS), texts.count(UNKNOWN)
            found[f"{name} unreliable"] = sum(bool(parse_flags(text)) for text in texts)
            found.update({f"{name} unknown": unknown} if unknown else {})
    return found


def _row(run: Path) -> dict[str, Any]:
    """What one run came to; its metrics where it is finished."""
    state = run / "run.json"
    if not state.is_file():
        error = run / "error.json"
        return {"status": read_json(error)["error"] if error.is_file() else "waiting"}
    value = read_json(state)
    row: dict[str, Any] = {"status": value["status"], "seconds": value["seconds"]}
    if value["status"] != "finished":
        return row
    records = read_records(run / "candidates.jsonl")
    row["candidates"] = sum(r["phase"] == "candidate" and r["status"] == "ok" for r in records)
    if not (run / "best.yaml").is_file():  # a run of phases only
        return row
    winner = load_architecture(str(run / "best.yaml")).sample
    record = best_candidate(run, winner)
    best = record["metrics"]
    row["best"] = best["default"]
    row.update({f"best {key}": best[key] for key in ("clean", "params", "macs") if key in best})
    row[f"best{_FLAGS}"] = show_flags(flags_of(record))
    final = run / "final.json"
    for network in read_json(final)["networks"] if final.is_file() else []:
        for key, metric in network["metrics"].items():
            row[f"{network['label']} test {key}"] = metric
        if network["metrics"]:
            row[f"{network['label']} test{_FLAGS}"] = show_flags(flags_of(network))
    return row


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write_comparison(folder: Path, sweep: Sweep, runs: Sequence[Run]) -> None:
    from nni_robust.analysis.comparison import compare_runs

    assert sweep.compare is not None
    finished: dict[str, list[Path]] = {}
    for run in runs:
        place = folder / run.folder
        state = place / "run.json"
        if state.is_file() and read_json(state)["status"] == "finished":
            finished.setdefault(str(run.values[sweep.compare.axis]), []).append(place)
    if sweep.compare.against not in finished or len(finished) < 2:
        return
    comparison = compare_runs(finished, against=sweep.compare.against, score=sweep.compare.score)
    write_json(folder / "comparison.json", comparison.to_dict())
    write_text(folder / "comparison.csv", comparison.to_csv())
    comparison.figure().savefig(folder / "comparison.svg")
