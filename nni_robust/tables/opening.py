"""From what a user writes to a table: names, paths, mappings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nni_robust.config import as_mapping
from nni_robust.errors import UserError, nearest
from nni_robust.task import Task

from ._base import Row, RowFlags, Sample, Table
from .nares import NARES_FILE, read_nares
from .records import read_records_table
from .robbench import ROBBENCH_FILES, read_robbench
from .synthetic import SyntheticTable

__all__ = ["FORMATS", "TaskTables", "absolute_table", "open_table", "shipped_tables"]

FORMATS = ("synthetic", "records", "nares", "nas-robbench-201")
_ALLOWED = {
    "synthetic": ("seed", "noise", "depths", "widths"),
    "records": ("path",),
    "nares": ("path",),
    "nas-robbench-201": ("path", "dataset", "meta"),
}


class TaskTables(Table):
    """A table for each task: which one answers is decided by one value of the task.

    Parameters
    ----------
    by
        ``"attack"`` or ``"dataset"``.
    tables
        Value of the task to its table.
    """

    def __init__(self, by: str, tables: Mapping[str, Table]) -> None:
        if by not in ("attack", "dataset"):
            raise UserError(f"table.by: {by!r} is not allowed; allowed: attack, dataset")
        if not tables:
            raise UserError("table.tables: at least one table is needed")
        self.by, self.tables = by, dict(tables)
        self.name = f"tables by {by}"

    def of(self, task: Task) -> Table:
        """The table of a task.

        Raises
        ------
        UserError
            If it has none.
        """
        value = str(as_mapping(task)[self.by])
        if value not in self.tables:
            raise UserError(
                f"there is no table for {self.by} {value!r} (there are: {', '.join(self.tables)})"
            )
        return self.tables[value]

    def __len__(self) -> int:
        return max(len(table) for table in self.tables.values())

    def samples(self) -> Iterator[dict[str, Any]]:
        return next(iter(self.tables.values())).samples()

    def row(self, sample: Sample, task: Task) -> Row:
        return self.of(task).row(sample, task)

    def row_flags(self, sample: Sample, task: Task) -> RowFlags:
        return self.of(task).row_flags(sample, task)

    def deciding(self, task: Task) -> str:
        return self.of(task).deciding(task)

    def fingerprint(self) -> Any:
        tables = {value: table.fingerprint() for value, table in self.tables.items()}
        return {"by": self.by, "tables": tables}


def shipped_tables() -> list[str]:
    """Names of the tables that come with the package."""
    folder = files("nni_robust.tables").joinpath("data")
    return sorted(f.name[:-6] for f in folder.iterdir() if f.name.endswith(".jsonl"))


def open_table(spec: str | Mapping[str, Any]) -> Table:
    """Open a table.

    Parameters
    ----------
    spec
        * ``"synthetic:wrn"``: :class:`SyntheticTable`.
        * Name of a table that comes with the package, see :func:`shipped_tables`.
        * Path of a file; its format is recognised.
        * A mapping: ``{format: synthetic, seed: 1}``, ``{format: nas-robbench-201, path: ...,
          dataset: cifar100}``, or ``{by: attack, tables: {clean: ..., pgd20: ...}}`` with a table
          for each task.

    Raises
    ------
    UserError
        If there is no such table, or the file is damaged or in no known format; for a published
        table the message says where to get it.
    """
    return _open(json.dumps(absolute_table(spec), sort_keys=True))


def absolute_table(spec: str | Mapping[str, Any]) -> Any:
    """The same specification with absolute paths: trials start in another directory."""
    if isinstance(spec, str):
        if spec.partition(":")[0] == "synthetic" or spec in shipped_tables():
            return spec
        return str(Path(spec).expanduser().absolute())
    if not isinstance(spec, Mapping):
        raise UserError(f"table: {spec!r} is not allowed; a name, a path or a mapping is")
    found = dict(spec)
    for key in ("path", "meta"):
        if isinstance(found.get(key), str):
            found[key] = str(Path(found[key]).expanduser().absolute())
    if isinstance(found.get("tables"), Mapping):
        found["tables"] = {str(k): absolute_table(v) for k, v in found["tables"].items()}
    return found


@lru_cache(maxsize=8)
def _open(text: str) -> Table:
    spec = json.loads(text)
    if isinstance(spec, str):
        return _named(spec)
    if "by" in spec or "tables" in spec:
        _check_keys(spec, ("by", "tables"))
        tables = spec.get("tables") or {}
        return TaskTables(str(spec.get("by")), {k: open_table(v) for k, v in tables.items()})
    kind = spec.pop("format", None)
    if kind not in FORMATS:
        raise UserError(
            f"table.format: {kind!r} is not allowed{nearest(str(kind), FORMATS)} (allowed: "
            f"{', '.join(FORMATS)})"
        )
    _check_keys(spec, _ALLOWED[kind])
    if kind == "synthetic":
        try:
            return SyntheticTable(**spec)
        except (TypeError, ValueError) as e:
            raise UserError(f"table 'synthetic': {' '.join(str(e).split())}") from e
    if "path" not in spec:
        raise UserError(f"table.path is missing for a table of format {kind}")
    if kind == "records":
        return read_records_table(spec["path"])
    return read_nares(spec["path"]) if kind == "nares" else read_robbench(**spec)


def _check_keys(spec: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for key in spec:
        if key not in allowed:
            raise UserError(
                f"unknown key '{key}' in table{nearest(key, allowed)} (allowed: "
                f"{', '.join(allowed)})"
            )


def _named(name: str) -> Table:
    if name == "synthetic:wrn":
        return SyntheticTable()
    if name.startswith("synthetic"):
        raise UserError(f"there is no table '{name}'; synthetic:wrn is the only one made up here")
    if name in shipped_tables():
        shipped = files("nni_robust.tables").joinpath("data", f"{name}.jsonl")
        return read_records_table(str(shipped), name)
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"no table '{name}' (shipped: {', '.join(shipped_tables())}; synthetic:wrn; for NARes, "
            f"{NARES_FILE}; for NAS-RobBench-201, {ROBBENCH_FILES})"
        )
    return _recognised(path)


def _recognised(path: Path) -> Table:
    """A file by what its beginning looks like."""
    with open(path, "rb") as f:
        beginning = f.read(4096).decode("utf-8", errors="replace").lstrip()
    first_key = beginning[1:].lstrip().partition(":")[0].strip().strip('"')
    if not beginning.startswith("{"):
        raise UserError(f"'{path}' is no table: it is not JSON (known: {', '.join(FORMATS)})")
    if first_key.startswith("|") or path.suffix == ".json":
        return read_robbench(path)
    if '"arch_id"' in beginning or '"test_best"' in beginning or '"arch"' in beginning:
        return read_nares(path)
    if '"sample"' in beginning:
        return read_records_table(path)
    raise UserError(f"'{path}' is in no known format of tables (known: {', '.join(FORMATS)})")
