"""The curve of a training as files: ``log.jsonl`` and ``log.csv`` in its folder, a line per epoch.

While a training runs the truth is its checkpoint; both files are written anew from it, in one step,
after every epoch and when the training continues. So a kill loses no line, and none comes twice.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

from nni_robust.errors import UserError
from nni_robust.store import read_records, write_text
from nni_robust.training._records import EpochRecord

__all__ = ["CURVE", "read_curve", "write_curve"]

#: The file that the curve is read from again; the other one is for spreadsheets.
CURVE = "log.jsonl"
_TABLE = "log.csv"


def write_curve(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Make both files hold these epochs and no others.

    Parameters
    ----------
    folder
        Of the training.
    history
        One record per epoch.
    """
    records = [dataclasses.asdict(record) for record in history]
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    table = io.StringIO()
    names = [field.name for field in dataclasses.fields(EpochRecord)]
    writer = csv.DictWriter(table, names, lineterminator="\n")  # None is an empty cell
    writer.writeheader()
    writer.writerows(records)
    write_text(folder / CURVE, lines)
    write_text(folder / _TABLE, table.getvalue())


def read_curve(folder: Path) -> list[EpochRecord]:
    """The epochs in a training's folder; none where there is no such file.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    try:
        return [EpochRecord(**record) for record in read_records(folder / CURVE)]
    except TypeError as e:
        raise UserError(f"'{folder / CURVE}' is damaged: {e}") from None
