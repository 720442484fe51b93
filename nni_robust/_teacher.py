"""Settings of a teacher; what is done with one is in :mod:`nni_robust.teacher`.

A task has a teacher, and loading one needs tasks, so the settings are a module of their own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nni_robust.config import strict

__all__ = ["ROBUSTBENCH", "Teacher", "absolute_teacher", "is_path"]

#: How the name of a network of RobustBench begins.
ROBUSTBENCH = "robustbench:"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Which teacher; plain numbers and strings, so that it travels to any trial.

    Parameters
    ----------
    architecture
        Name of a known architecture (``nni-robust archs``), path of an architecture file or
        of a folder of ``nni-robust export``, or ``robustbench:NAME`` for a network of that package.
    weights
        Path of its weights; None: those that the architecture file names, or those of the package.
    train
        Settings of a :class:`nni_robust.training.Recipe` by which the teacher is trained where it
        has no weights.
    seed
        Seed of that training.
    """

    architecture: str
    weights: str | None = None
    train: dict[str, Any] | None = None
    seed: int = 0

    __pydantic_config__ = strict


def is_path(architecture: str, folder: Path | None = None) -> bool:
    """Whether an architecture is a file or an exported folder (in `folder`), not a known name."""
    path = Path(architecture).expanduser()
    if path.suffix in (".yaml", ".yml", ".json"):
        return True
    if not ((folder or Path()) / path / "config.json").is_file():
        return False
    from nni_robust.architecture import list_architectures

    return architecture not in list_architectures()


def absolute_teacher(teacher: Teacher) -> Teacher:
    """The same teacher with absolute paths: it means the same in a process started elsewhere."""
    changes: dict[str, Any] = {}
    if teacher.weights is not None:
        changes["weights"] = str(Path(teacher.weights).expanduser().absolute())
    if is_path(teacher.architecture):
        changes["architecture"] = str(Path(teacher.architecture).expanduser().absolute())
    return dataclasses.replace(teacher, **changes)
