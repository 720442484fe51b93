"""The supernet phase of a weight-sharing search, as one NNI trial of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nni
import numpy as np

from nni_robust.config import as_mapping, parse
from nni_robust.data import load_task
from nni_robust.sampling import draw
from nni_robust.supernet import PathSampler, build_supernet, set_path
from nni_robust.task import Task
from nni_robust.training import Recipe, train
from nni_robust.training.weights import save_weights
from nni_robust.trial import CurveReporter, StoredEvaluator, default_device

__all__ = ["SupernetTraining"]


@nni.trace
class SupernetTraining(StoredEvaluator):
    """Adversarially train the supernet of the trial's space, one random path per batch.

    Runs as a trial, so that NNI can put it on any machine and its web UI shows the curve. The
    weights go into the store under the trial's key; candidates inherit them from there.

    Parameters
    ----------
    task, train
        Settings of a :class:`nni_robust.task.Task` and a :class:`nni_robust.training.Recipe`.
    uniform
        Draw every value of a choice with equal probability, even where the space has a prior.
    seed
        Seed of weights, paths, batches and attacks.
    store
        Folder of the run's store.
    """

    phase = "supernet"
    uses_sample = False
    attacked = True

    def __init__(
        self,
        *,
        task: Mapping[str, Any],
        train: Mapping[str, Any],
        store: str,
        uniform: bool = False,
        seed: int = 0,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.recipe = parse(Recipe, train, "strategy.supernet")
        self.uniform, self.seed, self.store = uniform, seed, store

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "task": as_mapping(self.task),
            "train": as_mapping(self.recipe),
            "uniform": self.uniform,
            "seed": self.seed,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Train the supernet; its weights are ``weights.safetensors`` in `folder`."""
        import torch

        assert folder is not None  # a store is required
        torch.manual_seed(self.seed)
        space = model.model.trace_copy().get(traceable=False)
        mutables = space.simplify()
        supernet = build_supernet(space).to(default_device())
        set_path(supernet, draw(mutables, np.random.RandomState(self.seed)))
        result = train(
            supernet,
            load_task(self.task),
            self.recipe,
            self.task.threat,
            folder=folder / "checkpoints",
            seed=self.seed,
            hook=PathSampler(mutables, self.uniform),
            on_epoch=CurveReporter(),
            logs=self.logs(folder),
            validate=False,  # one path's accuracy says little; candidates are measured one by one
        )
        save_weights(result.model, folder / "weights.safetensors", {"phase": self.phase})
        last = result.history[-1]
        return {
            "metrics": {
                # CutMix can mix every label of an epoch, and then nothing is counted.
                "default": last.train_robust or 0.0,
                "loss": last.loss,
                "seconds": round(result.seconds, 3),
            },
            "history": [dataclasses.asdict(record) for record in result.history],
        }
