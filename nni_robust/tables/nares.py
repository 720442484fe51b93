"""NARes: 15,625 wide residual networks, trained adversarially on CIFAR-10.

Depth in {4, 5, 7, 9, 11} and width in {8, 10, 12, 14, 16} of each of three stages, basic blocks:
`wide-resnet` with those `depth_values` and `width_values`, and the teacher WRN-70-16. File and
format: https://github.com/zhichao-lu/arch-dataset-adv-robustness (``nares.txz`` of its release
v1.0 holds ``cifar10.jsonl``); the reader is written after that repository's ``dataset.py`` (commit
e1c4a34).

A line has ``arch_id``, ``arch`` (``D1, W1, D2, W2, D3, W3``), ``MACs``, ``Params``, ``train`` (one
training: lists over epochs, among them ``val_acc``, ``pgd``, ``cw``, and ``best_epoch``, their
index) and ``test_best`` (the network of that epoch on the test split: ``test_clean_acc``,
``Linf_fgsm_acc``, …, ``Linf_aa_acc``, ``corruptions``).

Accuracies may be shares or percent; the rows are shares. The decisive column, as in the authors'
benchmark, is validation accuracy under PGD at the best epoch, ``pgd@8/255``. Its number of steps is
not in the file. Validation accuracies lie far below those of the test split (best 38.80 % and
57.39 % under PGD): compare within a column only.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from nni_robust.errors import UserError

from ._base import Row, RowTable, Sample
from ._kept import kept

__all__ = ["DEPTHS", "NARES_FILE", "WIDTHS", "NaresTable", "read_nares"]

DEPTHS = (4, 5, 7, 9, 11)
WIDTHS = (8, 10, 12, 14, 16)

#: Where the file is, for messages.
NARES_FILE = (
    "unpack cifar10.jsonl from nares.txz of release v1.0 of "
    "github.com/zhichao-lu/arch-dataset-adv-robustness"
)

_LABELS = tuple(f"stage{stage}/{what}" for stage in (1, 2, 3) for what in ("depth", "width"))
_FIELDS = ("D1", "W1", "D2", "W2", "D3", "W3")
_VALIDATION = {"clean": "val_acc", "pgd@8/255": "pgd", "cw@8/255": "cw"}
_TEST = {
    "test clean": "test_clean_acc",
    "test fgsm@8/255": "Linf_fgsm_acc",
    "test pgd20@8/255": "Linf_pgd_acc",
    "test cw40@8/255": "Linf_cw_acc",
    "test autoattack@8/255": "Linf_aa_acc",
}


class NaresTable(RowTable):
    """NARes; keys are (D1, W1, D2, W2, D3, W3)."""

    def key(self, sample: Sample) -> Any:
        rest = dict(sample)
        values = tuple(rest.pop(label, None) for label in _LABELS)
        # All of NARes has basic blocks, so a space that also has a choice of block may ask.
        others = [value for label, value in rest.items() if not _basic(label, value)]
        return None if others else values

    def sample(self, key: Any) -> dict[str, Any]:
        return dict(zip(_LABELS, key, strict=True))


def _basic(label: str, value: Any) -> bool:
    return bool(re.fullmatch(r"stage[123]/block", label)) and value == "basic"


def read_nares(path: str | Path) -> NaresTable:
    """Read NARes' ``cifar10.jsonl``; the first reading keeps an extract, later ones are fast.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    UserError
        If it is missing, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no NARes table '{path}'; {NARES_FILE}")
    rows = {tuple(key): row for key, row in kept(path, "nares", _extract)}
    return NaresTable("nares", rows, "pgd@8/255")


def _extract(path: Path) -> list[tuple[list[int], Row]]:
    found: list[tuple[list[int], Row]] = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                found.append(([int(record["arch"][f]) for f in _FIELDS], _row(record)))
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
                raise UserError(
                    f"'{path}', line {number} is not a record of NARes ({type(e).__name__}: {e}); "
                    f"{NARES_FILE}"
                ) from None
    if not found:
        raise UserError(f"'{path}' is empty; {NARES_FILE}")
    percent = max(row["clean"] for _, row in found) > 1
    for _, row in found:
        for column in row:
            if percent and column not in ("params", "macs", "seconds"):
                row[column] /= 100
    return found


def _row(record: dict[str, Any]) -> Row:
    """One line; of several trainings the mean."""
    row: Row = {}
    trainings = [(t, int(t["best_epoch"])) for t in record["train"]]
    for column, field in _VALIDATION.items():
        row[column] = statistics.fmean(float(t[field][epoch]) for t, epoch in trainings)
    for column, field in _TEST.items():
        values = [t.get(field) for t in record["test_best"]]
        if values and all(value is not None for value in values):
            row[column] = statistics.fmean(map(float, values))
    corrupted = [
        float(level["acc"])
        for t in record["test_best"]
        for levels in (t.get("corruptions") or {}).values()
        for level in levels.values()
    ]
    if corrupted:
        row["test corruptions"] = statistics.fmean(corrupted)
    row["params"] = _count(float(record["Params"]), 1e4, 1e6)
    row["macs"] = _count(float(record["MACs"]), 1e3, 1e9)
    days = [float(t.get("training_time") or 0) for t, _ in trainings]
    row["seconds"] = 86400 * statistics.fmean(days)  # the file has GPU days
    return row


def _count(value: float, small: float, unit: float) -> float:
    """A plain count, also of one that is given in `unit` (no network here is `small` by itself)."""
    return value * unit if value < small else value
