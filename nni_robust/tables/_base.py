"""What every table answers, and which of its columns decides for a task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from nni_robust.errors import UserError, nearest
from nni_robust.flags import Flags
from nni_robust.store import content_key
from nni_robust.task import Task
from nni_robust.threat import ThreatModel

__all__ = [
    "COSTS",
    "Row",
    "RowFlags",
    "RowTable",
    "Sample",
    "Table",
    "attack_column",
    "deciding_column",
    "is_test",
    "sample_key",
]

Sample = Mapping[str, Any]

#: Column to value: accuracies as shares in [0, 1], params and macs as counts, seconds of training.
Row = dict[str, float]

#: Columns that say what a network costs and not how good it is.
COSTS = ("params", "macs", "seconds")

_TEST = "test "


class RowFlags(NamedTuple):
    """Checks that the figures of a row failed; None where that is not known.

    Parameters
    ----------
    search
        Of what a search sees.
    test
        Of the columns of the test split.
    """

    search: Flags = None
    test: Flags = None


def is_test(column: str) -> bool:
    """Whether a column was measured on the test split: reported after a search, never before."""
    return column.startswith(_TEST)


def sample_key(sample: Sample) -> tuple[tuple[str, Any], ...]:
    """A hashable form of a sample, whatever the order of its labels."""
    return tuple(sorted((str(label), _hashable(value)) for label, value in sample.items()))


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(inner) for inner in value)
    if isinstance(value, float) and value.is_integer():  # JSON's 4.0 is a depth of 4
        return int(value)
    return value


class Table:
    """A source of scores.

    Attributes
    ----------
    name
        What it is, for messages and reports.
    """

    name: str = "table"

    def __len__(self) -> int:
        """Number of architectures (of a formula: of its grid)."""
        raise NotImplementedError

    def samples(self) -> Iterator[dict[str, Any]]:
        """Every architecture that has a row."""
        raise NotImplementedError

    def row(self, sample: Sample, task: Task) -> Row:
        """What is known of an architecture.

        Parameters
        ----------
        sample
            Label to value. It is looked up as it is; the nearest row is never taken instead.
        task
            What it is scored for; only tables that depend on the task read it.

        Raises
        ------
        UserError
            If it has no row, naming what it has that the table has not.
        """
        raise NotImplementedError

    def row_flags(self, sample: Sample, task: Task) -> RowFlags:
        """Whether the figures of a row can be believed; not known where the table keeps none."""
        return RowFlags()

    def deciding(self, task: Task) -> str:
        """Name of the column that a search for `task` maximises.

        Raises
        ------
        UserError
            If the table has none for the task's attack.
        """
        raise NotImplementedError

    def fingerprint(self) -> Any:
        """What its answers depend on, JSON-able: equal tables have equal fingerprints."""
        raise NotImplementedError


class RowTable(Table):
    """A table that is held in memory.

    Parameters
    ----------
    name
        See :class:`Table`.
    rows
        Key of an architecture (:meth:`key`) to its row.
    objective
        Column that decides where the task names no attack.
    flags
        Key of an architecture to the flags of its row, where they are known.
    """

    def __init__(
        self,
        name: str,
        rows: Mapping[Any, Row],
        objective: str,
        flags: Mapping[Any, RowFlags] | None = None,
    ) -> None:
        if not rows:
            raise UserError(f"table '{name}' has no rows")
        self.name, self.rows, self.objective = name, dict(rows), objective
        self.flags = {key: found for key, found in (flags or {}).items() if found != RowFlags()}
        self.columns = tuple(dict.fromkeys(column for row in rows.values() for column in row))
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def samples(self) -> Iterator[dict[str, Any]]:
        return (self.sample(key) for key in self.rows)

    def key(self, sample: Sample) -> Any:
        """Key of a sample's row. Subclasses have keys of their own."""
        return sample_key(sample)

    def sample(self, key: Any) -> dict[str, Any]:
        """Inverse of :meth:`key`."""
        return dict(key)

    def row(self, sample: Sample, task: Task) -> Row:
        found = self.rows.get(self.key(sample))
        if found is None:
            raise UserError(f"table '{self.name}' has no row for {self._why_not(sample)}")
        return dict(found)

    def row_flags(self, sample: Sample, task: Task) -> RowFlags:
        return self.flags.get(self.key(sample), RowFlags())

    def _why_not(self, sample: Sample) -> str:
        """The architecture, and the first of its values that no row has."""
        values: dict[str, dict[Any, None]] = {}
        for known in self.samples():
            for label, value in known.items():
                values.setdefault(label, {})[value] = None
        text = ", ".join(f"{label}={value}" for label, value in sample.items())
        for label, value in sample.items():
            if label not in values:
                return f"{text}: it knows no choice '{label}'{nearest(label, values)}"
            if _hashable(value) not in values[label]:
                known_values = ", ".join(map(str, values[label]))
                return f"{text}: {label} {value!r} is not among its values ({known_values})"
        missing = [label for label in values if label not in sample]
        return f"{text}: {missing[0]} is missing" if missing else text

    def deciding(self, task: Task) -> str:
        return deciding_column(self.columns, task, self.objective, self.name)

    def fingerprint(self) -> Any:
        if self._fingerprint is None:
            rows = sorted((repr(key), sorted(row.items())) for key, row in self.rows.items())
            flags = sorted((repr(key), found) for key, found in self.flags.items())
            self._fingerprint = content_key([rows, flags] if flags else rows)
        return {"table": self.name, "rows": len(self), "content": self._fingerprint}


def attack_column(task: Task) -> str:
    """Name of the accuracy under the task's attack (without one, ``"clean"``)."""
    if task.attack in (None, "clean"):
        return "clean"
    threat = (task.threat.norm, float(task.threat.eps))
    return _attack_key(json.dumps(task.attack, sort_keys=True), *threat)


@lru_cache(maxsize=256)
def _attack_key(attack: str, norm: Any, eps: float) -> str:
    from nni_robust.attacks import attack_from_spec  # loads torch

    return attack_from_spec(json.loads(attack), ThreatModel(norm, eps)).key


def deciding_column(columns: tuple[str, ...], task: Task, objective: str, name: str) -> str:
    """The column for the attack of a task.

    Parameters
    ----------
    columns
        Columns of the table. ``"pgd@8/255"``, where the number of steps is not known, stands for
        any number of steps.
    task
        Its `attack` and `threat`; without an attack, `objective` decides.
    objective
        The table's own.
    name
        Of the table, for the message.

    Raises
    ------
    UserError
        If no column was measured with that attack at that strength.
    """
    if task.attack is None:
        return objective
    wanted = attack_column(task)
    if wanted in columns:
        return wanted
    head, _, strength = wanted.partition("@")
    unspecific = f"{head.rstrip('0123456789')}@{strength}"
    if unspecific in columns:
        return unspecific
    usable = [c for c in columns if not is_test(c) and c not in (*COSTS, "default")]
    raise UserError(
        f"table '{name}' has no column '{wanted}' for the task's attack (it has: "
        f"{', '.join(usable)})"
    )
