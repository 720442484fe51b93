"""A task: what a search is for (data set, threat, attack, teacher, budget)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nni_robust._teacher import Teacher
from nni_robust.config import Quantity, strict
from nni_robust.cost import Cost
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["Budget", "Task"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a network may cost for one picture of the task.

    Parameters
    ----------
    macs, params
        Most multiply-accumulates and trainable parameters; None is no limit. May be written
        ``"5G"``, ``"19.2M"``.
    tolerance
        Share by which a limit may be exceeded (published "5 G" networks have 5.08 to 5.24 G).

    Raises
    ------
    UserError
        If no limit is given, or one is not positive.
    """

    macs: Quantity | None = None
    params: Quantity | None = None
    tolerance: float = 0.1

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if self.macs is None and self.params is None:
            raise UserError("budget: at least one of macs and params is needed, such as macs: 5G")
        for name in ("macs", "params"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise UserError(f"budget.{name}: {limit!r} is not allowed; a number > 0 is")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UserError(
                f"budget.tolerance: {self.tolerance!r} is not allowed; a number >= 0 is"
            )

    def excess(self, cost: Cost) -> float:
        """Largest ratio of a cost to its limit: 1 is just inside without any tolerance."""
        limits = [(cost.macs, self.macs), (cost.params, self.params)]
        return max(value / limit for value, limit in limits if limit is not None)

    def allows(self, cost: Cost) -> bool:
        """Whether a network of this cost keeps the budget, tolerance included."""
        return self.excess(cost) <= 1 + self.tolerance


@dataclasses.dataclass(frozen=True)
class Task:
    """What a search is for; plain numbers and strings, so that it travels to any trial.

    Parameters
    ----------
    dataset
        Name of a data set (:func:`nni_robust.data.load_dataset`).
    root
        Folder that holds the data set's files; None is ``$NNI_ROBUST_DATA``, else ``./data``.
    threat
        What the attacker may do.
    attack
        The attack that the network is to withstand, such as ``"pgd20"``, ``"cw40"``,
        ``"autoattack"`` or a mapping of settings; ``"clean"``: none, only clean accuracy counts.
        None leaves it to the evaluator.
    teacher
        The trained network that the search starts from or learns from.
    budget
        What the network may cost.
    validation
        Share of the training pictures that is split off for the search's decisions. The test split
        is never used by a search.
    split_seed
        Seed of that split.
    train_limit, validation_limit, test_limit
        Use only that many pictures of a split (the first of a seeded order); None is all.
    """

    dataset: str = "digits"
    root: str | None = None
    threat: ThreatModel = dataclasses.field(default_factory=ThreatModel)
    attack: str | dict[str, Any] | None = None
    teacher: Teacher | None = None
    budget: Budget | None = None
    validation: float = 0.2
    split_seed: int = 0
    train_limit: int | None = None
    validation_limit: int | None = None
    test_limit: int | None = None

    __pydantic_config__ = strict
