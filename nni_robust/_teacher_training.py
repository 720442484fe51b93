"""A teacher made ready for other trials, as an NNI trial of its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nni
import torch
from torch import nn

from nni_robust._teacher_loading import (
    build_teacher,
    has_weights,
    load_teacher,
    source_key,
    teacher_from_store,
)
from nni_robust.analysis import lipschitz_value
from nni_robust.attacks import scoring_attacks
from nni_robust.config import as_mapping, parse
from nni_robust.cost import measure_cost
from nni_robust.data import DataSplits, load_task
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.store import content_key, open_store
from nni_robust.task import Task
from nni_robust.training import parse_recipe, save_weights, train
from nni_robust.trial import CurveReporter, StoredEvaluator, default_device

__all__ = ["TeacherTraining"]

_log = logging.getLogger(__name__)

#: A teacher whose robust accuracy is less than this above chance is called not robust.
_MARGIN = 0.05


@nni.trace
class TeacherTraining(StoredEvaluator):
    """Make a task's teacher ready for other trials: load or train it, and measure it.

    Its record has ``metrics`` (``default``: the lowest accuracy under the attacks, ``clean``, one
    key per attack, ``params``, ``macs``, ``seconds``), ``lipschitz`` (local Lipschitz value under
    PGD-20 on up to 256 pictures), ``robust`` (None where no attack was asked for), ``warning`` (a
    sentence where it is not robust: a student cannot learn what its teacher does not know) and
    ``history`` of its training. Its weights lie beside it. All is measured on the validation split.

    The training depends on data, threat, recipe and seed only: tasks that differ in attack or
    budget share it.

    Parameters
    ----------
    task
        Settings of a :class:`nni_robust.task.Task` with a teacher.
    store
        Folder of the run's store.
    seed
        Of the attacks; the training's seed is the teacher's own.
    attacks
        What it is measured under; None is the task's attack, or ``pgd20``.
    score_limit
        Measure on that many pictures only; None is the whole split.

    Raises
    ------
    UserError
        If the task has no teacher, or a setting is impossible.
    """

    phase = "teacher"
    uses_sample = False
    attacked = True

    def __init__(
        self,
        *,
        task: Mapping[str, Any] | None = None,
        store: str | None = None,
        seed: int = 0,
        attacks: Sequence[Any] | None = None,
        score_limit: int | None = None,
    ) -> None:
        self.task = parse(Task, task, "task")
        if self.task.teacher is None:
            raise UserError("task.teacher is missing: there is no teacher to train or load")
        self.teacher = self.task.teacher
        recipe = self.teacher.train
        self.recipe = None if recipe is None else parse_recipe(recipe, "task.teacher.train")
        self.attacks = scoring_attacks(attacks, self.task.attack, self.task.threat)
        self.store, self.seed, self.score_limit = store, seed, score_limit

    def extra_repr(self) -> str:
        return f"teacher={self.teacher}, attacks={self.attacks}"

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            **self._part("attack", "budget"),
            "seed": self.seed,
            "attacks": self.attacks,
            "score_limit": self.score_limit,
        }

    def key(self, model: Any) -> str:
        """Name of the result in the store; the space plays no part."""
        return content_key(type(self).__name__, self.settings())

    def _part(self, *without: str) -> dict[str, Any]:
        """The task but for some of its settings, and what the teacher is."""
        task = as_mapping(self.task)
        for name in ("teacher", *without):
            del task[name]
        return {"task": task, "teacher": source_key(self.teacher)}

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Load or train, then measure."""
        data = load_task(self.task)
        network, history = self._network(data)
        network = network.to(default_device())
        shared: dict[str, Any] = {"limit": self.score_limit, "seed": self.seed}
        found = evaluate(network, data.validation, self.attacks, threat=self.task.threat, **shared)
        metrics = found.metrics()
        under = [value for name, value in metrics.items() if name != "clean"]
        chance = 1 / data.num_classes
        robust = min(under) >= chance + _MARGIN if under else None
        warning = None
        if robust is False:
            warning = (
                f"the teacher '{self.teacher.architecture}' is not robust: its accuracy is "
                f"{min(under):.1%} under attack, and chance is {chance:.1%}"
            )
            _log.warning(warning)
        if folder is not None:
            save_weights(network, folder / "weights.safetensors", {"phase": self.phase})
        # A loaded teacher is frozen; parameters that do not train would not count.
        cost = measure_cost(network.requires_grad_(), data.input_shape)
        return {
            "metrics": {
                "default": min(under) if under else found.clean,
                **metrics,
                "params": cost.params,
                "macs": cost.macs,
                "seconds": round(sum(r["seconds"] for r in history) + found.seconds, 3),
            },
            "lipschitz": lipschitz_value(
                network,
                data.validation,
                "pgd20",
                threat=self.task.threat,
                limit=min(self.score_limit or 256, 256),
                seed=self.seed,
            ),
            "robust": robust,
            "reliability": found.reliability.as_dict(),
            "warning": warning,
            "history": history,
        }

    def _network(self, data: DataSplits) -> tuple[nn.Module, list[dict[str, Any]]]:
        """The trained teacher and the records of its training."""
        shape = data.input_shape
        if self.recipe is None or has_weights(self.teacher):
            return load_teacher(self.teacher, data.num_classes, shape), []
        if self.store is None:
            return self._train(data, None)
        part = self._part("attack", "budget", "test_limit")
        key, store = content_key("teacher's weights", part), open_store(self.store)
        record = store.once(key, lambda folder: {"history": self._train(data, folder)[1]})
        return (
            teacher_from_store(self.store, key, self.teacher, data.num_classes, shape),
            record["history"],
        )

    def _train(
        self, data: DataSplits, folder: Path | None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        assert self.recipe is not None
        torch.manual_seed(self.teacher.seed)
        result = train(
            build_teacher(self.teacher, data.num_classes, pretrained=False),
            data,
            self.recipe,
            self.task.threat,
            folder=None if folder is None else folder / "checkpoints",
            seed=self.teacher.seed,
            on_epoch=CurveReporter(),
            logs=self.logs(folder),
        )
        if folder is not None:
            save_weights(result.model, folder / "weights.safetensors", {"phase": self.phase})
        return result.model, [dataclasses.asdict(record) for record in result.history]
