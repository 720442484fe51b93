"""Look a network's scores up in a table instead of training it.

For comparing strategies over many seeds. Whatever works with
:class:`nni_robust.evaluators.AdversarialTraining` works with this: the metrics have the same names,
and a task's attack chooses the column that counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nni

from nni_robust.config import as_mapping, parse
from nni_robust.errors import UserError
from nni_robust.tables import Table, is_test, open_table
from nni_robust.tables.opening import absolute_table
from nni_robust.task import Task
from nni_robust.trial import StoredEvaluator

__all__ = ["TabularEvaluator"]

_COSTS = ("params", "macs", "seconds")


@nni.trace
class TabularEvaluator(StoredEvaluator):
    """Answer from a table.

    The final metric is a flat dict: ``default`` (the deciding column), ``clean`` and one key per
    attack as far as the table has them, ``params``, ``macs``, ``seconds`` (that the training took
    when the table was made, or 0). Columns of the test split are never among them; they are in the
    trial's record under ``"test"``, where nothing that a strategy sees comes from.

    A look-up needs no process: the engine is answered at once, under NNI's training service too.
    An architecture that is not in the table is a failed trial, with the reason.

    Parameters
    ----------
    table
        See :func:`nni_robust.tables.open_table`: a name, a path or a mapping.
    metric
        Column that decides; None: the one of the task's attack, or the table's own without one.
    task
        Settings of a :class:`nni_robust.task.Task`: its attack, and what a table by formula needs.
    seed
        Not used, for a table has one answer; strategies set it.
    store
        Folder of the run's store; a failed look-up leaves its reason there.
    phase
        Name of the trial in records and web UI.
    as_trials
        Send every look-up through a trial of its own, which NNI's web UI then shows. It takes
        seconds under the training service.

    Raises
    ------
    UserError
        If the table cannot be opened, or has no column for the task.
    """

    recipe = None  # nothing is trained
    builds_networks = False  # so the runner makes no weights for the space

    def __init__(
        self,
        *,
        table: str | Mapping[str, Any] = "synthetic:wrn",
        metric: str | None = None,
        task: Mapping[str, Any] | None = None,
        seed: int = 0,
        store: str | None = None,
        phase: str = "candidate",
        as_trials: bool = False,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.spec = absolute_table(table)
        self.metric, self.seed, self.store = metric, seed, store
        self.phase, self.as_trials = phase, as_trials
        self.attacked = (metric or self.opened.deciding(self.task)) != "clean"
        if metric is not None and is_test(metric):
            raise UserError(
                f"evaluator.metric: {metric!r} is not allowed; a search must not see the test split"
            )

    @property
    def opened(self) -> Table:
        """The table (kept open in this process)."""
        return open_table(self.spec)

    def variant(self, **changes: Any) -> TabularEvaluator:
        """A copy with some arguments changed, such as another task."""
        return TabularEvaluator(**{**self._arguments(), **changes})

    def extra_repr(self) -> str:
        return f"table={self.spec}, metric={self.metric}"

    def _arguments(self) -> dict[str, Any]:
        return {
            "table": self.spec,
            "metric": self.metric,
            "task": as_mapping(self.task),
            "seed": self.seed,
            "store": self.store,
            "phase": self.phase,
            "as_trials": self.as_trials,
        }

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "table": self.opened.fingerprint(),
            "metric": self.metric,
            "task": as_mapping(self.task),
            "phase": self.phase,
        }

    def finished(self, model: Any) -> dict[str, Any] | None:
        """The metrics, without a trial; None where there is no answer, or trials are wanted."""
        if self.as_trials:
            found: dict[str, Any] | None = super().finished(model)
            return found
        try:
            metrics: dict[str, Any] = self.look_up(model.sample)["metrics"]
        except UserError:
            return None  # the trial that follows fails and says why
        return metrics

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Look up; see :class:`nni_robust.trial.StoredEvaluator`."""
        return self.look_up(model.sample)

    def look_up(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The record of an architecture: ``metrics``, and ``test`` with the test split's columns.

        Where the table knows the flags of the row, they are in ``reliability``.

        Raises
        ------
        UserError
            If the table has no such architecture, or no such column for it.
        """
        table = self.opened
        row = table.row(sample, self.task)
        column = self.metric or table.deciding(self.task)
        if column not in row:
            raise UserError(
                f"evaluator.metric: the table has no column '{column}' for this architecture (it "
                f"has: {', '.join(c for c in row if not is_test(c))})"
            )
        shown = {c: v for c, v in row.items() if not is_test(c) and c not in ("default", *_COSTS)}
        costs = {c: row.get(c, 0.0) for c in _COSTS if c in row or c == "seconds"}
        return {
            "metrics": {"default": row[column], **shown, **costs},
            "test": {c.removeprefix("test "): v for c, v in row.items() if is_test(c)},
            **self.reliability_of(sample),
        }

    def reliability_of(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """``{"reliability": ...}`` as the table has it for an architecture; empty if unknown."""
        flags = self.opened.row_flags(sample, self.task).search
        if flags is None:
            return {}
        # The table keeps names only, so this is the short form of `Reliability.as_dict`.
        why = [f"{name}: says the table '{self.opened.name}'" for name in flags]
        return {"reliability": {"reliable": not why, "unreliable": why}}
