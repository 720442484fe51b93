"""What can be learnt from finished candidates: fronts, correlations, topology."""

from __future__ import annotations

from nni_robust.analysis.pareto import pareto_front

__all__ = ["pareto_front"]
