"""Teachers: trained networks that a search compresses or distils."""

from __future__ import annotations

import dataclasses
from typing import Any

from nni_robust.config import strict

__all__ = ["Teacher"]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Which teacher; plain numbers and strings, so that it travels to any trial.

    Parameters
    ----------
    architecture
        Name of a known architecture (``nni-robust archs``), path of an architecture file, or
        ``robustbench:NAME`` for a network of that package.
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
