"""Task files, and descriptions of teachers alone, which stand for a task too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_robust._teacher import is_path
from nni_robust.architecture import FORMAT, Architecture, list_architectures, load_architecture
from nni_robust.config import parse, read_yaml
from nni_robust.errors import UserError, nearest
from nni_robust.store import read_json
from nni_robust.task import Task
from nni_robust.tasks._catalogue import catalogue, list_tasks, named_task, nearest_budget
from nni_robust.teacher import Teacher

__all__ = ["load_task_file"]

#: Attack of a task of which only the teacher is known.
_ATTACK = "pgd20"


def load_task_file(name_or_path: str | Path) -> Task:
    """A task by name, or of a file.

    Parameters
    ----------
    name_or_path
        * a name that :func:`list_tasks` gives, such as ``"cifar10/wrn-28-10/pgd20"``;
        * the path of a .yaml, .yml or .json file with the fields of a
          :class:`~nni_robust.task.Task`, or with a section ``task`` (so that an experiment file
          does), which may also be the name of a task. Its teacher's paths are relative to the file;
        * a teacher alone: a name of the zoo, an architecture file, or a model file of the authors
          of wide residual networks, such as ``WRN-A1.yaml``. The data set is that of the file, or
          told by the number of classes; the attack is PGD-20, the budget the nearest of 5, 10, 20
          and 40 G.

    Raises
    ------
    UserError
        If there is no such name or file, or the file is damaged or describes no task.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        if name in list_architectures():
            return _of_teacher(load_architecture(name), name, {})
        if "/" in name or not path.is_file():
            return named_task(name)
        raise UserError(f"'{path}': a task file ends in .yaml, .yml or .json")
    value = read_json(path) if path.suffix == ".json" else read_yaml(path)
    if not isinstance(value, Mapping):
        raise UserError(f"'{path}' must hold a mapping of settings, not {type(value).__name__}")
    if value.get("format") == FORMAT or "model" in value or "depth_configs" in value:
        return _of_teacher(load_architecture(path), str(path), value)
    section = value.get("task", value)
    if isinstance(section, str):
        return named_task(section)
    task = parse(Task, section, "task" if "task" in value else f"'{path}'")
    return dataclasses.replace(task, teacher=_beside(task.teacher, path.parent))


def _beside(teacher: Teacher | None, folder: Path) -> Teacher | None:
    """A teacher whose paths are relative to a folder."""
    if teacher is None:
        return None
    changes: dict[str, Any] = {}
    if is_path(teacher.architecture, folder):
        changes["architecture"] = str(folder / teacher.architecture)
    if teacher.weights is not None:
        changes["weights"] = str(folder / teacher.weights)
    return dataclasses.replace(teacher, **changes)


def _of_teacher(architecture: Architecture, where: str, value: Mapping[str, Any]) -> Task:
    """The task of compressing a teacher of which nothing else is known."""
    data = value.get("dataset")
    written = data.get("dataset_type") if isinstance(data, Mapping) else None
    dataset = _dataset(architecture, where, written)
    known = catalogue()["datasets"][dataset]
    cost = architecture.cost(known["input_shape"], known["num_classes"])
    criterion = value.get("criterion")
    eps = criterion.get("epsilon") if isinstance(criterion, Mapping) else None
    threat = dict(catalogue()["threat"]) | ({} if eps is None else {"eps": eps})
    task = {
        "dataset": dataset,
        "attack": _ATTACK,
        "threat": threat,
        "teacher": {"architecture": where},
        "validation": known["validation"],
    }
    return dataclasses.replace(parse(Task, task, where), budget=nearest_budget(cost.macs))


def _dataset(architecture: Architecture, where: str, written: Any) -> str:
    """The data set that a teacher's file names, or that has as many classes."""
    known = catalogue()["datasets"]
    if written is not None:
        plain = "".join(filter(str.isalnum, str(written))).lower()
        for name in known:
            if "".join(filter(str.isalnum, name)) == plain:
                return str(name)
        raise UserError(
            f"'{where}': dataset_type: {written!r} is not allowed{nearest(plain, known)} "
            f"(allowed: {', '.join(known)}); a task file can name any data set"
        )
    for name, facts in known.items():
        if facts["num_classes"] == architecture.num_classes:
            return str(name)
    raise UserError(
        f"'{where}' describes a teacher for {architecture.num_classes} classes, which tells no "
        f"data set; a task file with dataset and teacher does, or a name such as {list_tasks()[0]}"
    )
