"""Estimators that learn nothing: what an estimator that learns has to beat.

Noises of one picture at different strengths mostly point in one direction, so these are good.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nni_robust.noise._base import Bracket, NoiseEstimator, Sources, estimators

__all__ = ["InterpolateEstimator", "ScaleEstimator"]


@estimators.register("scale")
class ScaleEstimator(NoiseEstimator):
    """The real noise whose norm is nearest to the target, rescaled."""

    name = "scale"

    def _raw(self, sources: Sources, bracket: Bracket, targets: Tensor) -> Tensor:
        norms = sources.norms
        # A picture's zero noise has no direction; any other is better.
        norms = torch.where(norms > 0, norms, torch.inf)
        nearest = (norms.unsqueeze(1) - targets.unsqueeze(2)).abs().argmin(2)
        rows = torch.arange(len(norms), device=norms.device).unsqueeze(1)
        return sources.units[rows, nearest]


@estimators.register("interpolate")
class InterpolateEstimator(NoiseEstimator):
    """The mean direction of the two neighbours, the closer one heavier; outside, the nearest."""

    name = "interpolate"

    def _raw(self, sources: Sources, bracket: Bracket, targets: Tensor) -> Tensor:
        return self._base(sources.units, bracket)
