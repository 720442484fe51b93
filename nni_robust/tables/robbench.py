"""NAS-RobBench-201: all cells of NAS-Bench-201, trained adversarially on three data sets.

Wu, Liu, Simon-Gabriel, Chrysos, Cevher, "Robust NAS under adversarial training: benchmark, theory,
and beyond", ICLR 2024, https://arxiv.org/abs/2403.13134. Files:
https://github.com/TT2408/nasrobbench201 links to ``NAS-RobBench-201_all.json`` and ``meta.json``.

* ``NAS-RobBench-201_all.json``: data set (``cifar10``, ``cifar100``, ``imagenet``) to id to metric.
  A metric such as ``val_pgd_3.0_acc`` (3/255) has a value for each seed and ``threeseed``, their
  mean, which is taken; ``autoattack`` is a plain number. Shares in [0, 1].
* ``meta.json``: ``{"ids": {id: {"nb201-string": cell, "isomorph": id of the trained cell}}}``.
* A file of one data set, cell string to metrics, is read too; it needs no ``meta.json``.

Only 6,466 cells were trained; the other 9,159 compute the same as one of them and get its row. What
counts as the same is NAS-Bench-201's rule, :func:`cell_class`.

It fits ``nni.nas.hub.pytorch.NasBench201`` (labels ``cell/0_1``, …). There is no test split.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_robust.errors import UserError

from ._base import Row, RowTable, Sample
from ._kept import kept

__all__ = ["ROBBENCH_FILES", "RobBenchTable", "cell_class", "cell_string", "read_robbench"]

#: Where the files are, for messages.
ROBBENCH_FILES = (
    "download NAS-RobBench-201_all.json and meta.json by the link in the README of "
    "github.com/TT2408/nasrobbench201"
)

#: Source and target of the edges, in the order of a cell string.
_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
#: NNI's names of the operations, to NAS-Bench-201's.
_OPERATIONS = {
    "none": "none",
    "skip_connect": "skip_connect",
    "conv_1x1": "nor_conv_1x1",
    "conv_3x3": "nor_conv_3x3",
    "avg_pool_3x3": "avg_pool_3x3",
}
_NNI = {theirs: ours for ours, theirs in _OPERATIONS.items()}
_METRICS = {
    "clean": "val_acc",
    "fgsm@3/255": "val_fgsm_3.0_acc",
    "fgsm@8/255": "val_fgsm_8.0_acc",
    "pgd20@3/255": "val_pgd_3.0_acc",
    "pgd20@8/255": "val_pgd_8.0_acc",
    "autoattack": "autoattack",  # the authors' files do not say at which strength
}


def cell_string(sample: Sample) -> str:
    """NAS-Bench-201's string of a sample of NNI's space.

    Parameters
    ----------
    sample
        ``{"cell/0_1": "conv_3x3", ...}`` for the six edges.

    Raises
    ------
    UserError
        If an edge is missing or an operation unknown.

    Examples
    --------
    >>> cell_string({f"cell/{a}_{b}": "none" for a in range(3) for b in range(a + 1, 4)})
    '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'
    """
    named: dict[tuple[int, int], str] = {}
    for source, target in _EDGES:
        label = f"cell/{source}_{target}"
        operation = sample.get(label)
        if operation not in _OPERATIONS:
            raise UserError(
                f"{label}: {operation!r} is no operation of NAS-Bench-201 (allowed: "
                f"{', '.join(_OPERATIONS)})"
            )
        named[source, target] = _OPERATIONS[operation]
    unknown = [label for label in sample if label not in {f"cell/{a}_{b}" for a, b in _EDGES}]
    if unknown:
        raise UserError(f"'{unknown[0]}' is no choice of NAS-Bench-201's cell")
    nodes = [
        "|" + "|".join(f"{named[source, target]}~{source}" for source in range(target)) + "|"
        for target in (1, 2, 3)
    ]
    return "+".join(nodes)


def _operations(cell: str) -> list[str]:
    parts = [part for part in cell.replace("+", "").split("|") if part]
    found = [part.split("~") for part in parts]
    if [int(source) for _, source in found] != [source for source, _ in _EDGES]:
        raise ValueError(f"no cell string: {cell!r}")
    names = [operation for operation, _ in found]
    if any(name not in _NNI for name in names):
        raise ValueError(f"unknown operation in {cell!r}")
    return names


def cell_class(cell: str) -> str:
    """What cells that count as the same have in common: skips are contracted, dead edges marked.

    The rule is NAS-Bench-201's; it makes 6,466 classes of the 15,625 cells. (Dropping dead edges
    altogether would leave 5,390.)

    Parameters
    ----------
    cell
        As :func:`cell_string` gives it.
    """
    names = iter(_operations(cell))
    nodes = ["0"]
    for target in (1, 2, 3):
        terms = []
        for source in range(target):
            name = next(names)
            if name == "none" or nodes[source] == "#":
                terms.append("#")
            else:
                inner = nodes[source]
                terms.append(inner if name == "skip_connect" else f"({inner})@{name}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


class RobBenchTable(RowTable):
    """NAS-RobBench-201; keys are the classes of :func:`cell_class`."""

    def __init__(self, name: str, rows: Mapping[str, tuple[str, Row]], objective: str) -> None:
        super().__init__(name, {key: row for key, (_, row) in rows.items()}, objective)
        self._cells = {key: cell for key, (cell, _) in rows.items()}

    def key(self, sample: Sample) -> Any:
        return cell_class(cell_string(sample))

    def sample(self, key: Any) -> dict[str, Any]:
        names = _operations(self._cells[key])
        return {f"cell/{a}_{b}": _NNI[name] for (a, b), name in zip(_EDGES, names, strict=True)}

    def _why_not(self, sample: Sample) -> str:
        return f"the cell {cell_string(sample)}"


def read_robbench(
    path: str | Path, *, dataset: str = "cifar10", meta: str | Path | None = None
) -> RobBenchTable:
    """Read NAS-RobBench-201.

    Parameters
    ----------
    path
        ``NAS-RobBench-201_all.json``, or a file of one data set by cell string.
    dataset
        ``cifar10``, ``cifar100`` or ``imagenet``; not used for a file of one data set.
    meta
        ``meta.json``; None looks beside `path`.

    Raises
    ------
    UserError
        If a file is missing, damaged, or something else.
    """
    path = Path(path)
    beside = Path(meta) if meta is not None else path.with_name("meta.json")
    if not path.is_file():
        raise UserError(f"no NAS-RobBench-201 table '{path}'; {ROBBENCH_FILES}")

    def extract(file: Path) -> Any:
        return _extract(file, dataset, beside)

    changed = beside.stat().st_mtime_ns if beside.is_file() else 0
    rows = kept(path, f"robbench {dataset} {beside} {changed}", extract)
    return RobBenchTable(
        f"nas-robbench-201 {dataset}",
        {key: (cell, row) for key, cell, row in rows},
        "pgd20@8/255",
    )


def _extract(path: Path, dataset: str, meta: Path) -> list[tuple[str, str, Row]]:
    content = _json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"'{path}' is no NAS-RobBench-201 table; {ROBBENCH_FILES}")
    if next(iter(content)).startswith("|"):
        by_cell = content
    else:
        if dataset not in content:
            raise UserError(
                f"'{path}' has no data set '{dataset}' (it has: {', '.join(content)}), or is no "
                "NAS-RobBench-201 table"
            )
        if not meta.is_file():
            raise UserError(f"no '{meta}' beside '{path.name}'; {ROBBENCH_FILES}")
        try:
            cells = {key: ids["nb201-string"] for key, ids in _json(meta)["ids"].items()}
            by_cell = {cells[key]: metrics for key, metrics in content[dataset].items()}
        except (KeyError, TypeError, AttributeError) as e:
            raise UserError(f"'{meta}' does not fit '{path.name}': {e}; {ROBBENCH_FILES}") from None
    found = []
    for cell, metrics in by_cell.items():
        try:
            found.append((cell_class(cell), cell, _row(metrics)))
        except (ValueError, KeyError, TypeError, AttributeError) as e:  # noqa: PERF203
            raise UserError(f"'{path}': cell {cell!r} cannot be read: {e}") from None
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"'{path}' is damaged: {e}; {ROBBENCH_FILES}") from None


def _row(metrics: Mapping[str, Any]) -> Row:
    row: Row = {}
    for column, field in _METRICS.items():
        if field not in metrics:
            continue
        value = metrics[field]
        if isinstance(value, Mapping):
            value = value.get("threeseed", statistics.fmean(value.values()))
        row[column] = float(value)
    if "pgd20@8/255" not in row:
        raise KeyError("val_pgd_8.0_acc")
    return row
