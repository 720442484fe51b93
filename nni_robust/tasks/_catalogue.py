"""The named tasks: every data set of the catalogue with every teacher and every attack."""

from __future__ import annotations

import fnmatch
import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

from nni_robust.config import parse, parse_quantity, read_yaml
from nni_robust.errors import UserError, nearest
from nni_robust.task import Budget, Task
from nni_robust.teacher import Teacher
from nni_robust.threat import ThreatModel

__all__ = ["catalogue", "list_tasks", "named_task", "nearest_budget"]


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Any]:
    """What ``catalogue.yaml`` says."""
    return read_yaml(Path(__file__).parent / "catalogue.yaml")


def list_tasks(pattern: str = "*") -> list[str]:
    """Names of tasks that match a pattern such as ``"cifar10/*/pgd20"``, in catalogue order."""
    known = catalogue()
    parts = itertools.product(known["datasets"], known["teachers"], known["attacks"])
    return [name for name in map("/".join, parts) if fnmatch.fnmatchcase(name, pattern)]


def named_task(name: str) -> Task:
    """The task called ``data set/teacher/attack``.

    Raises
    ------
    UserError
        If there is no such data set, teacher or attack, naming the part that is wrong.

    Examples
    --------
    >>> named_task("cifar10/wrn-28-10/pgd20").budget.macs
    5000000000.0
    """
    known = catalogue()
    sections = ("datasets", "teachers", "attacks")
    parts = name.split("/")
    if len(parts) != len(sections):
        allowed = " / ".join(", ".join(known[section]) for section in sections)
        raise UserError(
            f"unknown task '{name}'{nearest(name, list_tasks())} (a task is called data "
            f"set/teacher/attack, of: {allowed})"
        )
    for section, part in zip(sections, parts, strict=True):
        if part not in known[section]:
            raise UserError(
                f"unknown task '{name}': it has no {section[:-1]} '{part}'"
                f"{nearest(part, known[section])} (allowed: {', '.join(known[section])})"
            )
    dataset, teacher, attack = parts
    data = known["datasets"][dataset]
    return Task(
        dataset=dataset,
        threat=parse(ThreatModel, known["threat"], "threat"),
        attack=attack,
        teacher=Teacher(teacher + data.get("suffix", "")),
        budget=parse(Budget, {"macs": known["teachers"][teacher]}, "budget"),
        validation=data["validation"],
    )


def nearest_budget(macs: float) -> Budget:
    """The budget of the catalogue whose ratio to a number of MACs is nearest to 1."""
    limits = [float(parse_quantity(text)) for text in catalogue()["budgets"]]  # type: ignore[arg-type]
    return Budget(macs=min(limits, key=lambda limit: max(limit / macs, macs / limit)))
