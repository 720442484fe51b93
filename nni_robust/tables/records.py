"""Our own format: JSON lines ``{"sample": {...}, "metrics": {...}}``, made from a finished run.

Column ``default`` is what the run's search maximised; columns that begin with ``test`` were
measured on the test split. ``reliability`` names the checks that the other columns failed, and
``test reliability`` those of the test columns: empty for none, ``"unknown"``, as where they are
missing, if nobody checked. Several runs of the same space (other seeds) give one table of means:
the score of a network is then what its training gives on average.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_robust.errors import UserError
from nni_robust.flags import UNKNOWN, Flags, flags_of, merge_flags, parse_flags, show_flags
from nni_robust.store import read_json, read_records, write_text

from ._base import COSTS, Row, RowFlags, RowTable, is_test, sample_key

_RELIABILITY = "reliability"
_TEST_RELIABILITY = "test reliability"

__all__ = ["read_records_table", "table_from_run", "write_table"]


def read_records_table(path: str | Path, name: str | None = None) -> RowTable:
    """Read a table in our own format.

    Parameters
    ----------
    path
        JSON-lines file.
    name
        Of the table; None is the file's.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not in that format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no table '{path}'; nni-robust table RUN makes one of a finished run")
    rows: dict[Any, Row] = {}
    flags: dict[Any, RowFlags] = {}
    for number, record in enumerate(read_records(path), 1):
        sample, metrics = record.get("sample"), record.get("metrics")
        if not isinstance(sample, dict) or not isinstance(metrics, dict):
            raise UserError(
                f"'{path}', line {number}: a record with sample and metrics is expected"
            )
        if "default" not in metrics:
            raise UserError(f"'{path}', line {number}: the metrics lack 'default'")
        key = sample_key(sample)
        if key in rows:
            raise UserError(f"'{path}', line {number}: this sample has a row already")
        rows[key] = {str(column): float(value) for column, value in metrics.items()}
        texts = (str(record.get(which, UNKNOWN)) for which in (_RELIABILITY, _TEST_RELIABILITY))
        flags[key] = RowFlags(*map(parse_flags, texts))
    return RowTable(name or path.stem, rows, "default", flags)


def table_from_run(
    runs: str | Path | Sequence[str | Path],
    *,
    test: Mapping[str, Mapping[str, float]] | None = None,
    again: RowTable | None = None,
) -> RowTable:
    """The candidates of finished runs as a table.

    Parameters
    ----------
    runs
        One run folder, or several of the same space and task, whose scores are averaged. An
        architecture that not all of them have is left out.
    test
        Key of a trial in the store to what its network scores on the test split; see
        :func:`nni_robust.experiments.score_on_test`, which leaves the flags in the run folder.
    again
        The same architectures trained with another seed; their scores become columns
        ``"test second seed default"``, …, which no search sees: what a winner is worth that was not
        chosen for its luck.

    Raises
    ------
    UserError
        If a folder holds no candidates.
    """
    folders = [runs] if isinstance(runs, (str, Path)) else list(runs)
    found: list[dict[Any, Row]] = []
    flags: list[dict[Any, RowFlags]] = []
    for folder in map(Path, folders):
        records = read_records(folder / "candidates.jsonl")
        good = [r for r in records if r["phase"] == "candidate" and r["status"] == "ok"]
        if not good:
            raise UserError(f"'{folder}' holds no finished candidate to make a table of")
        rows: dict[Any, Row] = {}
        flags.append({})
        tested = {str(r["key"]): flags_of(r) for r in read_records(folder / "test.jsonl")}
        for record in good:
            row = {column: float(value) for column, value in record["metrics"].items()}
            scores = (test or {}).get(str(record["key"]), {})
            row |= {f"test {column}": float(value) for column, value in scores.items()}
            key = sample_key(record["sample"])
            rows[key] = row
            flags[-1][key] = RowFlags(
                flags_of(record), tested.get(str(record["key"])) if scores else None
            )
        found.append(rows)
    shared = [key for key in found[0] if all(key in rows for rows in found[1:])]
    if not shared:
        raise UserError("the runs share no architecture, so there is no table of means")
    means = {
        key: {
            column: statistics.fmean(rows[key][column] for rows in found)
            for column in found[0][key]
            if all(column in rows[key] for rows in found)
        }
        for key in shared
    }
    merged: dict[Any, RowFlags] = {}
    for key, row in means.items():
        has_test = any(is_test(column) for column in row)
        test_flags: list[Flags] = [one[key].test for one in flags] if has_test else []
        if again is not None and key in again.rows:
            test_flags.append(again.flags.get(key, RowFlags()).search)
        merged[key] = RowFlags(
            merge_flags(one[key].search for one in flags), merge_flags(test_flags)
        )
        for column, value in (again.rows.get(key, {}) if again is not None else {}).items():
            if column not in COSTS and not is_test(column):
                row[f"test second seed {column}"] = value
    return RowTable(_name(Path(folders[0])), means, "default", merged)


def _name(folder: Path) -> str:
    state = folder / "run.json"
    return str(read_json(state)["name"]) if state.is_file() else folder.name


def write_table(table: RowTable, path: str | Path) -> None:
    """Write a table in our own format, sorted; accuracies to five digits.

    Parameters
    ----------
    table
        Any table held in memory, published ones included.
    path
        The file; it is replaced in one step.
    """
    lines = []
    for key in sorted(table.rows, key=repr):
        row = dict(table.rows[key])
        row.setdefault("default", row[table.objective])
        metrics: dict[str, float | int] = {
            column: int(value) if float(value).is_integer() else round(value, 5)
            for column, value in row.items()
        }
        record: dict[str, Any] = {"sample": table.sample(key), "metrics": metrics}
        record[_RELIABILITY] = show_flags(table.flags.get(key, RowFlags()).search)
        if any(is_test(column) for column in row):
            record[_TEST_RELIABILITY] = show_flags(table.flags.get(key, RowFlags()).test)
        lines.append(json.dumps(record))
    write_text(path, "\n".join(lines) + "\n")
