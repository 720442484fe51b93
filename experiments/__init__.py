"""Experiments: compositions of a space, a strategy and an evaluator in one YAML file.

Names are imported on first use: NNI's tuner process imports this package and has seconds only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._test_split import score_on_test as score_on_test
    from .runner import run_experiment as run_experiment
    from .schema import Experiment as Experiment
    from .schema import load_experiment as load_experiment
    from .schema import shipped as shipped
    from .sweep import run_sweep as run_sweep

_HOMES = {
    "Experiment": "schema",
    "load_experiment": "schema",
    "run_experiment": "runner",
    "run_sweep": "sweep",
    "score_on_test": "_test_split",
    "shipped": "schema",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
