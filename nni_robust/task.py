"""A task: what a search is for (data set, threat, and later teacher and budget)."""

from __future__ import annotations

import dataclasses

from nni_robust.config import strict
from nni_robust.threat import ThreatModel

__all__ = ["Task"]


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and threat of a search; plain numbers and strings, so that it travels to any trial.

    Parameters
    ----------
    dataset
        Name of a data set (:func:`nni_robust.data.load_dataset`).
    root
        Folder that holds the data set's files; None is ``$NNI_ROBUST_DATA``, else ``./data``.
    threat
        What the attacker may do.
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
    validation: float = 0.2
    split_seed: int = 0
    train_limit: int | None = None
    validation_limit: int | None = None
    test_limit: int | None = None

    __pydantic_config__ = strict
