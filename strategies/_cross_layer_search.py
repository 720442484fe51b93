"""The search phase of cross-layer distillation, as one NNI trial of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nni

from nni_robust.config import as_mapping, parse
from nni_robust.data import load_task
from nni_robust.distillation import SearchSettings, Unrelaxed, search_tutors
from nni_robust.relaxation import relax
from nni_robust.task import Task
from nni_robust.teacher import Teacher, teacher_from_store
from nni_robust.trial import StoredEvaluator, default_device, report_epoch

__all__ = ["CrossLayerSearch"]


@nni.trace
class CrossLayerSearch(StoredEvaluator):
    """Search tutors and architecture on the trial's space, relaxed.

    Runs as a trial, so that NNI can put it on any machine and its web UI shows the curve. Its
    record holds the :class:`nni_robust.distillation.SearchOutcome` under ``"search"``.

    Parameters
    ----------
    task
        Settings of a :class:`nni_robust.task.Task`.
    teachers
        ``{"key": …, "teacher": …}`` of each teacher: its place in the store, its settings.
    settings
        Of a :class:`nni_robust.distillation.SearchSettings`.
    store
        Folder of the run's store.
    seed
        Of everything random.
    fixed
        Search tutors for the plain network of the trial's sample, for spaces that cannot be
        relaxed.
    """

    phase = "search"

    def __init__(
        self,
        *,
        task: Mapping[str, Any],
        teachers: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        store: str,
        seed: int = 0,
        fixed: bool = False,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.teachers = [dict(teacher) for teacher in teachers]
        self.search = parse(SearchSettings, settings, "strategy.search")
        self.store, self.seed, self.fixed = store, seed, fixed
        self.uses_sample = fixed

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "task": as_mapping(self.task),
            "teachers": self.teachers,
            "settings": as_mapping(self.search),
            "seed": self.seed,
            "fixed": self.fixed,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Search; checkpoints go into the trial's folder, and a killed search goes on from them."""
        import torch

        assert folder is not None  # a store is required
        torch.manual_seed(self.seed)
        data = load_task(self.task)
        if self.fixed:
            relaxed: Any = Unrelaxed(model.executable_model())
        else:
            relaxed = relax(model.model.trace_copy().get(traceable=False))
        budget = self.task.budget
        limits = {} if budget is None else {"macs": budget.macs, "params": budget.params}
        outcome = search_tutors(
            relaxed,
            [self._teacher(entry, data) for entry in self.teachers],
            data,
            self.search,
            self.task.threat,
            folder=folder / "checkpoints",
            seed=self.seed,
            device=default_device(),
            budget={name: limit for name, limit in limits.items() if limit is not None},
            on_epoch=_report,
        )
        last = outcome.history[-1]
        metrics = {
            "default": last["accuracy"],
            **{name: last[name] for name in ("ce", "kl", "attn", "cost", "entropy_tutors")},
            "seconds": round(sum(record["seconds"] for record in outcome.history), 3),
        }
        found = dataclasses.asdict(outcome)
        return {"metrics": metrics, "history": found.pop("history"), "search": found}

    def _teacher(self, entry: Mapping[str, Any], data: Any) -> Any:
        teacher = parse(Teacher, entry["teacher"], "teacher")
        return teacher_from_store(
            str(self.store), entry["key"], teacher, data.num_classes, data.input_shape
        )


def _report(record: dict[str, float]) -> None:
    names = ("loss", "ce", "kl", "attn", "cost", "tau", "entropy_tutors", "entropy_choices")
    report_epoch({"default": record["accuracy"], **{name: record[name] for name in names}})
