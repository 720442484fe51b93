"""The tasks of a search: which there are, and what each means for the space at hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nni_robust.config import as_mapping, parse
from nni_robust.cost import Cost
from nni_robust.data import absolute_task
from nni_robust.errors import UserError
from nni_robust.policy import Context, Options, attack_kind, options_for
from nni_robust.store import content_key
from nni_robust.task import Budget, Task
from nni_robust.tasks import load_task_file, task_shape
from nni_robust.training import parse_recipe

from ._phases import blank_space
from ._rl_settings import Score

__all__ = ["Target", "budget_of", "is_trainable", "most_tasks", "resolve_tasks"]

_FIELDS = tuple(field.name for field in dataclasses.fields(Task))


class Target:
    """A task on the searched space.

    Parameters
    ----------
    task
        The task.
    model_space
        NNI's executable space, whose class and arguments say what the networks are.
    minimum
        Least values, see :class:`nni_robust.policy.Options`.

    Attributes
    ----------
    key, name
        Of the task, in logs: the first is the same for equal tasks only.
    options
        What may be drawn.
    compresses
        Whether the task names a teacher or a budget; otherwise scores alone count.
    teacher_key
        Where the trained teacher lies in the store, once it is known.
    lipschitz
        Local Lipschitz value of the trained teacher, once it is known.
    reference
        Accuracies that rewards compare with, once they are known.
    """

    def __init__(self, task: Task, model_space: Any, minimum: Mapping[str, float]) -> None:
        self.task = task
        settings = as_mapping(task)
        self.key = content_key(settings)
        self.name = _name(task)
        self.classes, self.shape = task_shape(task)
        # Networks get as many outputs as the task has classes.
        named = "num_classes" in model_space.model.trace_kwargs
        space = blank_space(model_space, **({"num_classes": self.classes} if named else {}))
        self.options: Options = options_for(space, task, self.shape, minimum=minimum)
        self.stem_stride = int(getattr(getattr(space, "config", None), "stem_stride", 1))
        self.compresses = task.teacher is not None or task.budget is not None
        self.clean = attack_kind(task.attack)[0] == "clean"
        self.teacher_key: str | None = None
        self.lipschitz: float | None = None
        self.reference: Score | None = None

    @property
    def teacher_cost(self) -> Cost | None:
        """Cost of the teacher's network."""
        return self.options.cost(self.options.teacher) if self.options.has_cost else None

    def cost(self, sample: Mapping[str, Any], metrics: Mapping[str, Any], what: str) -> Any:
        """MACs or parameters of a network: exact where known, else as its trial counted."""
        if self.options.has_cost:
            return getattr(self.options.cost(sample), what)
        return metrics.get(what)

    def context(self) -> Context:
        """The task as the policy is told it."""
        return Context(
            self.task, self.classes, self.shape[-1], self.teacher_cost, lipschitz=self.lipschitz
        )


def resolve_tasks(given: Any, base: Task, where: str) -> list[Task]:
    """Tasks from a list of names, files and mappings, or from buffers.

    Parameters
    ----------
    given
        A list: each item the name of a task, the path of a task file, or a mapping of the fields in
        which the task differs from the experiment's. Or a mapping of buffers, whose combinations
        are the tasks: the name of a field to its values, or any other name to mappings of fields
        that go together, such as a teacher and its budget.
    base
        The experiment's task.
    where
        Path of the setting, for messages.

    Raises
    ------
    UserError
        If one is no task.
    """
    if isinstance(given, Mapping):
        given = [
            {key: value for part in combination for key, value in part.items()}
            for combination in itertools.product(
                *(_buffer(str(name), values, where) for name, values in given.items())
            )
        ]
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise UserError(
            f"{where}: {given!r} is not allowed; a list of tasks, or a mapping of buffers, is"
        )
    tasks = [_task(item, base, f"{where}.{place}") for place, item in enumerate(given)]
    return list({content_key(as_mapping(task)): task for task in tasks}.values())


def _buffer(name: str, values: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(values, (list, tuple)) or not values:
        raise UserError(f"{where}.{name}: {values!r} is not allowed; a list is")
    if name in _FIELDS:
        return [{name: value} for value in values]
    for value in values:
        if not isinstance(value, Mapping):
            raise UserError(
                f"{where}.{name}: {value!r} is not allowed; '{name}' is no field of a task, so "
                f"mappings of fields are (fields: {', '.join(_FIELDS)})"
            )
    return [dict(value) for value in values]


def _task(item: Any, base: Task, where: str) -> Task:
    if isinstance(item, str):
        task = load_task_file(item)
        if task.root is None:
            task = dataclasses.replace(task, root=base.root)
        return absolute_task(task)
    if not isinstance(item, Mapping):
        raise UserError(f"{where}: {item!r} is not allowed; the name of a task or a mapping is")
    task = parse(Task, {**as_mapping(base), **item}, where)
    if task.teacher is not None and task.teacher.train is not None:
        parse_recipe(task.teacher.train, f"{where}.teacher.train")  # not hours later, by its trial
    return absolute_task(task)


def budget_of(value: Any, task: Task) -> Task:
    """The task with a budget given as ``"5G"``, as a number of MACs, or as a mapping."""
    if value is None:
        return task
    mapping = value if isinstance(value, Mapping) else {"macs": value}
    return dataclasses.replace(task, budget=parse(Budget, mapping, "strategy.budget"))


def is_trainable(task: Task) -> bool:
    """Whether the task's teacher has weights, or says how it is trained."""
    teacher = task.teacher
    if teacher is None:
        return False
    if teacher.weights or teacher.train is not None or teacher.architecture.startswith("robustb"):
        return True
    from nni_robust.architecture import load_architecture

    return bool(load_architecture(teacher.architecture).trained)


def _name(task: Task) -> str:
    """``digits/wrn-28-10/pgd20``, as the named tasks are called; what is not given is left out."""
    attack = task.attack
    kind = attack.get("name", "attack") if isinstance(attack, Mapping) else attack
    parts = [task.dataset, task.teacher.architecture if task.teacher else None, kind]
    return "/".join(str(part) for part in parts if part is not None)


def most_tasks(given: Sequence[Any] | Mapping[str, Any] | None) -> int:
    """How many tasks a list, or the combinations of buffers, can hold."""
    if given is None:
        return 0
    if isinstance(given, Mapping):
        return math.prod(len(values) for values in given.values() if isinstance(values, list))
    return len(given)
