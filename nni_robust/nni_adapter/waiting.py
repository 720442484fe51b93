"""Waiting for models without waiting for ever."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

__all__ = ["wait_for"]


def wait_for(engine: Any, models: Iterable[Any], poll: float = 0.25) -> None:
    """Return when every model has ended, well or not.

    NNI's own ``wait_models(*models)`` never looks whether the manager is still there, and without
    arguments it adds seconds of patience to every search.

    Parameters
    ----------
    engine
        NNI execution engine that the models were submitted to.
    models
        The submitted instances themselves.
    poll
        Seconds between two looks.

    Raises
    ------
    Exception
        Whatever the engine raises when its manager or a callback died.
    """
    models = list(models)
    checks = 0
    while not all(model.status.completed() for model in models):
        checks += 1
        if checks % 8 == 0:
            getattr(engine, "check_alive", engine.budget_available)()
        time.sleep(poll)
