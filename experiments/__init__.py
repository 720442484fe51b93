"""Experiments: compositions of a space, a strategy and an evaluator, run through NNI."""

from __future__ import annotations

from .runner import run_experiment
from .schema import load_experiment, shipped

__all__ = ["load_experiment", "run_experiment", "shipped"]
