"""One search of a comparison: its scores in order, read from the folder of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nni_robust.config import parse, read_yaml
from nni_robust.errors import UserError
from nni_robust.flags import Flags, flags_of
from nni_robust.store import content_key, read_json, read_records
from nni_robust.task import Task

__all__ = ["SearchCurve", "best_possible", "read_curve"]

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SearchCurve:
    """One search.

    Parameters
    ----------
    seed
        Its seed, or None where that is not known.
    scores
        Score of each distinct architecture of the target task in order; None where it failed.
    repeated
        Evaluations of an architecture that had been evaluated before.
    elsewhere
        Evaluations for other tasks, and of references.
    test
        Scores of the best architecture on the test split, as far as they are known: column to
        share.
    best_sample
        The best architecture.
    flags
        Of each score, the checks that failed; may be shorter, where no more are known.
    test_flags
        Of `test`.
    """

    seed: int | None
    scores: tuple[float | None, ...]
    repeated: int = 0
    elsewhere: int = 0
    test: dict[str, float] = dataclasses.field(default_factory=dict)
    best_sample: dict[str, Any] | None = None
    flags: tuple[Flags, ...] = ()
    test_flags: Flags = None

    def best_so_far(self, length: int) -> Floats:
        """(length,) best score after each evaluation; NaN before the first, the last one after."""
        values = [-np.inf if score is None else score for score in self.scores[:length]]
        values += [-np.inf] * (length - len(values))
        best = np.maximum.accumulate(np.array(values, dtype=np.float64))
        best[~np.isfinite(best)] = np.nan
        return best

    def doubts(self, length: int) -> tuple[str, ...]:
        """Checks that the best of the first `length` scores failed."""
        known = [(s, i) for i, s in enumerate(self.scores[:length]) if s is not None]
        first = max(known, key=lambda pair: (pair[0], -pair[1]), default=None)
        if first is None or first[1] >= len(self.flags):
            return ()
        return self.flags[first[1]] or ()

    def reaches(self, level: float, length: int) -> int | None:
        """Evaluations until `level` is reached; None where it never is."""
        found = np.flatnonzero(np.nan_to_num(self.best_so_far(length), nan=-np.inf) >= level)
        return int(found[0]) + 1 if len(found) else None


def read_curve(folder: str | Path, score: str = "default") -> SearchCurve:
    """Read the candidates of a run.

    Parameters
    ----------
    folder
        A finished run.
    score
        Metric of the candidates.

    Raises
    ------
    UserError
        If it has no candidate with that metric.
    """
    folder = Path(folder)
    records = read_records(folder / "candidates.jsonl")
    candidates = [r for r in records if r["phase"] == "candidate"]
    seen: set[str] = set()
    scores: list[float | None] = []
    flags: list[Flags] = []
    best: tuple[float, dict[str, Any]] | None = None
    for record in sorted(candidates, key=lambda r: int(r["index"])):
        name = content_key(record["sample"])
        if name in seen:
            continue
        seen.add(name)
        value = record["metrics"].get(score) if record["status"] == "ok" else None
        scores.append(None if value is None else float(value))
        flags.append(flags_of(record))
        if value is not None and (best is None or value > best[0]):
            best = (float(value), record["sample"])
    if best is None:
        raise UserError(f"'{folder}' has no candidate with the metric '{score}'")
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    others = [r for r in records if r["phase"] not in ("candidate", "supernet", "teacher")]
    seed = config.get("seed")
    test, test_flags = _test_scores(folder, config, best[1])
    return SearchCurve(
        seed=int(seed) if isinstance(seed, int) else None,
        scores=tuple(scores),
        repeated=len(candidates) - len(scores),
        elsewhere=len(others),
        test=test,
        best_sample=best[1],
        flags=tuple(flags),
        test_flags=test_flags,
    )


def _test_scores(
    folder: Path, config: Mapping[str, Any], sample: Any
) -> tuple[dict[str, float], Flags]:
    """The winner on the test split: its own test, or from the table that the run looked up in."""
    final = folder / "final.json"
    if final.is_file():
        for network in read_json(final)["networks"]:
            if network["label"] == "best":
                metrics = network["metrics"]
                skipped = ("default", "params", "macs", "seconds")
                scores = {k: float(v) for k, v in metrics.items() if k not in skipped}
                return scores, flags_of(network)
    opened = _table(config)
    if opened is None:
        return {}, None
    table, task = opened
    row = table.row(sample, task)
    scores = {k.removeprefix("test "): v for k, v in row.items() if k.startswith("test ")}
    return scores, table.row_flags(sample, task).test


def _table(config: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The table and the task of a run with the tabular evaluator."""
    evaluator = config.get("evaluator") or {}
    if evaluator.get("name") != "tabular":
        return None
    from nni_robust.tables import open_table

    table = open_table(evaluator.get("table", "synthetic:wrn"))
    return table, parse(Task, config.get("task"), "task")


def best_possible(folders: Sequence[str | Path]) -> float | None:
    """The best score in the table that the runs looked up in; None where they did not."""
    file = Path(folders[0], "config.yaml") if folders else None
    config = read_yaml(file) if file is not None and file.is_file() else {}
    opened = _table(config)
    if opened is None:
        return None
    table, task = opened
    column = (config.get("evaluator") or {}).get("metric") or table.deciding(task)
    return float(max(table.row(sample, task).get(column, -np.inf) for sample in table.samples()))
