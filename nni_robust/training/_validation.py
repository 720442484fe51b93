"""Clean and robust accuracy after an epoch, shared out among the devices."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from nni_robust.attacks import NonFiniteOutput
from nni_robust.data import Images
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel
from nni_robust.training.recipe import Recipe

__all__ = ["Validation"]


class Validation:
    """Measures a network on search-validation pictures; each device takes its part of them.

    Parameters
    ----------
    images
        All search-validation pictures.
    recipe
        Its validation attack, limit and batch size count.
    threat
        Ball of the attack.
    fabric
        Devices.
    seed
        Of the attack's random starts; the same after every epoch.
    """

    def __init__(
        self, images: Images, recipe: Recipe, threat: ThreatModel, fabric: Any, seed: int
    ) -> None:
        self.recipe, self.threat, self.fabric, self.seed = recipe, threat, fabric, seed
        limited = images.head(recipe.validation_limit or sys.maxsize)
        mine = torch.arange(fabric.global_rank, len(limited), fabric.world_size)
        self.images = limited.take(mine).to(fabric.device)

    def __call__(self, model: nn.Module) -> tuple[float, float | None] | None:
        """Clean and robust accuracy over all devices (robust only where the recipe has an attack).

        None if the network's output is NaN or infinite on any device.
        """
        with self.fabric.autocast():
            counts = self._count(model) if len(self.images) else [0, 0, 0, 0]
        total = torch.tensor(counts, device=self.fabric.device)
        clean, robust, n, bad = self.fabric.all_reduce(total, reduce_op="sum").tolist()
        if bad:
            return None
        return clean / n, None if self.recipe.validation_attack is None else robust / n

    def _count(self, model: nn.Module) -> list[int]:
        """Pictures correct, correct under attack, and measured here; 1 if the output was NaN."""
        spec = self.recipe.validation_attack
        try:
            found = evaluate(
                model,
                self.images,
                [] if spec is None else [spec],
                threat=self.threat,
                batch_size=self.recipe.batch_size,
                seed=self.seed,
            )
        except NonFiniteOutput:
            return [0, 0, 0, 1]
        robust = sum(int(result.correct.sum()) for result in found.attacks.values())
        return [int(found.clean_correct.sum()), robust, found.n, 0]
