"""The table of a candidate study: one row per candidate that finished.

The authors of RobNet never released theirs (issues 15 to 17 of their repository ask for it).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_robust.analysis.topology import Topology, robnet_topology
from nni_robust.errors import UserError
from nni_robust.store import read_records, write_text

__all__ = ["StudyRow", "load_study", "read_csv", "to_csv"]

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StudyRow:
    """One candidate.

    Parameters
    ----------
    index
        Number of the trial.
    key
        Name of its result in the run's store, or None.
    topology
        Code and counts of the architecture.
    robust, clean
        Accuracies in [0, 1] under attack (the score) and on clean pictures.
    params, macs
        Trainable parameters; multiply-accumulates for one picture.
    fsp
        FSP distance of each cell, first cell first (:func:`nni_robust.analysis.fsp_distance`);
        empty where it was not measured.
    gap
        Clean minus robust accuracy of the very weights that `fsp` was measured on, in [-1, 1];
        None where unknown.

    What was not measured is None.
    """

    index: int
    key: str | None
    topology: Topology
    robust: float
    clean: float | None = None
    params: int | None = None
    macs: int | None = None
    fsp: tuple[float, ...] = ()
    gap: float | None = None


def load_study(
    source: str | Path | Iterable[Record],
    *,
    robust: str = "default",
    describe: Callable[[Any], Topology] = robnet_topology,
) -> list[StudyRow]:
    """Read the candidates of a run.

    Parameters
    ----------
    source
        A run folder, its ``candidates.jsonl``, a CSV file of :func:`to_csv`, or records. Of records
        the ones with phase "candidate" and status "ok" count. ``record["fsp"]`` may hold
        ``{"distance": [one per cell], "clean": …, "robust": …}``: measured before fine-tuning, as
        in the paper. Without its accuracies the gap is that of the metrics.
    robust
        Metric that is the robust accuracy, such as ``"pgd20@8/255"``.
    describe
        Gives the topology of a record's ``code``.

    Returns
    -------
    list of StudyRow
        In the order of the records. A candidate recorded twice (same key) counts once, with the
        later record.

    Raises
    ------
    UserError
        If there is no such run, a record has no such metric or no number there, or a code cannot
        be read.
    """
    if not isinstance(source, (str, Path)):
        return _rows(source, robust, describe)
    path = Path(source)
    if path.suffix == ".csv":
        return read_csv(path)
    if path.is_dir():
        path = path / "candidates.jsonl"
    if not path.is_file():
        raise UserError(f"no candidates: '{path}' does not exist")
    return _rows(read_records(path), robust, describe)


def _rows(
    records: Iterable[Record], robust: str, describe: Callable[[Any], Topology]
) -> list[StudyRow]:
    rows: dict[Any, StudyRow] = {}
    for position, record in enumerate(records):
        if record.get("phase", "candidate") != "candidate" or record.get("status", "ok") != "ok":
            continue
        row = _row(record, robust, describe)
        rows[row.key if row.key is not None else position] = row
    return list(rows.values())


def _row(record: Record, robust: str, describe: Callable[[Any], Topology]) -> StudyRow:
    index, metrics = int(record.get("index", 0)), record.get("metrics", {})
    if robust not in metrics:
        raise UserError(
            f"candidate {index} has no metric '{robust}' (it has: {', '.join(metrics) or 'none'})"
        )
    if record.get("code") is None:
        raise UserError(f"candidate {index} has no code, so its topology is not known")
    where = f"candidate {index}: "
    fsp = record.get("fsp") or {}
    measured = fsp if {"clean", "robust"} <= set(fsp) else metrics
    clean = _number(measured, "clean", where)
    attacked = _needed(measured, "robust" if measured is fsp else robust, where)
    return StudyRow(
        index=index,
        key=record.get("key"),
        topology=describe(record["code"]),
        robust=_needed(metrics, robust, where),
        clean=_number(metrics, "clean", where),
        params=_count(metrics, "params", where),
        macs=_count(metrics, "macs", where),
        fsp=tuple(_needed({"fsp": value}, "fsp", where) for value in fsp.get("distance", ())),
        gap=None if clean is None else clean - attacked,
    )


def _number(values: Record, name: str, where: str) -> float | None:
    return None if values.get(name) is None else _needed(values, name, where)


def _needed(values: Record, name: str, where: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}{name}: {value!r} is not allowed; a finite number is")
    return float(value)


def _count(values: Record, name: str, where: str) -> int | None:
    value = _number(values, name, where)
    return None if value is None else int(value)


_COLUMNS = [
    "index",
    "key",
    "code",
    "cells",
    "bits",
    "density",
    "convs",
    "identities",
    "direct_convs",
    "direct_edges",
    "direct_share_of_edges",
    "direct_share_of_convs",
    "robust",
    "clean",
    "params",
    "macs",
    "gap",
    "fsp",
]


def to_csv(rows: Sequence[StudyRow], path: str | Path | None = None) -> str:
    """Write a study as CSV; :func:`read_csv` gives back the very same rows.

    Parameters
    ----------
    rows
        The candidates.
    path
        File to write, in one step; None only returns the text.

    Returns
    -------
    str
        The text. Accuracies and shares are in [0, 1]; an empty field was not measured; ``bits``
        is a string of 0 and 1, ``fsp`` numbers separated by spaces.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shape = row.topology
        writer.writerow(
            {
                "index": row.index,
                "key": row.key,
                "code": shape.code,
                "cells": shape.cells,
                "bits": "".join(map(str, shape.bits)),
                "density": shape.density,
                "convs": shape.convs,
                "identities": shape.identities,
                "direct_convs": shape.direct_convs,
                "direct_edges": shape.direct_edges,
                "direct_share_of_edges": shape.direct_share("direct_edges"),
                "direct_share_of_convs": shape.direct_share("convs"),
                "robust": row.robust,
                "clean": row.clean,
                "params": row.params,
                "macs": row.macs,
                "gap": row.gap,
                "fsp": " ".join(map(repr, row.fsp)),
            }
        )
    if path is not None:
        write_text(path, buffer.getvalue())
    return buffer.getvalue()


def read_csv(path: str | Path) -> list[StudyRow]:
    """Read a study that :func:`to_csv` wrote.

    Shares and density are recomputed from the counts.

    Raises
    ------
    UserError
        If the file is missing, or is not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file '{path}'")
    with open(path, encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"'{path}' is not a study: column '{missing[0]}' is missing")
        try:
            return [_parse(line) for line in reader]
        except (TypeError, ValueError) as e:
            raise UserError(f"'{path}' is damaged in line {reader.line_num}: {e}") from None


def _parse(line: Mapping[str, str]) -> StudyRow:
    if not line["bits"] or set(line["bits"]) - {"0", "1"}:
        raise ValueError(f"bits: {line['bits']!r} is not a string of 0 and 1")
    shape = Topology(
        code=line["code"],
        bits=tuple(int(bit) for bit in line["bits"]),
        convs=int(line["convs"]),
        identities=int(line["identities"]),
        direct_convs=int(line["direct_convs"]),
        direct_edges=int(line["direct_edges"]),
        cells=int(line["cells"]),
    )
    return StudyRow(
        index=int(line["index"]),
        key=line["key"] or None,
        topology=shape,
        robust=_finite(line["robust"]),
        clean=_finite(line["clean"]) if line["clean"] else None,
        params=int(line["params"]) if line["params"] else None,
        macs=int(line["macs"]) if line["macs"] else None,
        fsp=tuple(_finite(value) for value in line["fsp"].split()),
        gap=_finite(line["gap"]) if line["gap"] else None,
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value
