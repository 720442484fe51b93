"""The steps of a training one by one, on batches that are given: for benchmarks and tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nni_robust.data import DataSplits
from nni_robust.threat import ThreatModel
from nni_robust.training._run import Run
from nni_robust.training._setup import make_fabric
from nni_robust.training.recipe import Recipe

__all__ = ["Steps"]


class Steps(Run):
    """A training that takes no step by itself.

    Parameters
    ----------
    model, data, recipe, threat, seed
        See :func:`nni_robust.training.train`, on one device. The pictures of `data` are not used;
        their number says how many steps an epoch has.
    """

    def __init__(
        self, model: nn.Module, data: DataSplits, recipe: Recipe, threat: ThreatModel, seed: int = 0
    ) -> None:
        super().__init__(
            model,
            data,
            recipe,
            threat,
            folder=None,
            seed=seed,
            hook=None,
            on_epoch=None,
            validate=False,
            identity={},
            teacher=None,
            wrap=None,
            handover=Path(),
            logs=(),
        )
        self.fabric = make_fabric(recipe)
        self._prepare()
        self.model.train()

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Attack a batch and step on it, exactly as a training does.

        Parameters
        ----------
        x
            (N, C, H, W), float32, in [0, 1].
        y
            (N,), int64.
        """
        self._train_batch(x, y)
        self.batch += 1
        if self.batch == self.steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
