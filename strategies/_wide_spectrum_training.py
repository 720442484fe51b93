"""The search phase of a wide-spectrum search, as one NNI trial of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nni
import numpy as np
import torch
from torch import nn

from nni_robust.config import as_mapping, parse
from nni_robust.data import DataSplits, load_task
from nni_robust.predictor import make_encoding
from nni_robust.sampling import Sample, draw
from nni_robust.spectrum import Passes, count_passes
from nni_robust.supernet import build_supernet, set_path
from nni_robust.task import Task
from nni_robust.training import EpochRecord, Recipe, train
from nni_robust.training.weights import save_weights
from nni_robust.trial import StoredEvaluator, default_device, report_epoch

from ._wide_spectrum_searcher import Searcher, plan_epochs
from ._wide_spectrum_settings import SearchSettings

__all__ = ["WideSpectrumTraining", "on_device", "score", "search_recipe"]


def search_recipe(recipe: Recipe, settings: SearchSettings) -> Recipe:
    """The recipe with as many epochs as the search has."""
    return dataclasses.replace(recipe, epochs=len(plan_epochs(settings)))


def score(losses: list[float], settings: SearchSettings) -> float:
    """A number in (0, 1] to maximise: the geometric mean probability of the right class.

    Over pictures, and over clean pictures and strengths as the objective weighs them.
    """
    weights = np.array(settings.objective.coefficients)
    return float(np.exp(-(weights * np.array(losses)).sum() / weights.sum()))


@nni.trace
class WideSpectrumTraining(StoredEvaluator):
    """Train a supernet along the paths that logits draw, and move the logits.

    Runs as a trial, so that NNI can put it on any machine and its web UI shows the curve. After
    every epoch the supernet's training and the search (``search.safetensors``) are on disk; a trial
    that is killed goes on from there and ends as it would have.

    Parameters
    ----------
    task, train
        Settings of a :class:`nni_robust.task.Task` and a :class:`nni_robust.training.Recipe`,
        whose epochs are those of the search.
    search
        Settings of a search, see :class:`nni_robust.strategies.WideSpectrumSearch`.
    seed
        Of everything random.
    store
        Folder of the run's store. The supernet's weights go there under the trial's key.
    """

    phase = "search"
    uses_sample = False

    def __init__(
        self,
        *,
        task: Mapping[str, Any],
        train: Mapping[str, Any],
        search: Mapping[str, Any],
        store: str,
        seed: int = 0,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.search = parse(SearchSettings, search, "strategy").resolved()
        self.recipe = search_recipe(parse(Recipe, train, "strategy.supernet"), self.search)
        self.seed, self.store = seed, store

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "task": as_mapping(self.task),
            "train": as_mapping(self.recipe),
            "search": as_mapping(self.search),
            "seed": self.seed,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Search; the supernet's weights are ``weights.safetensors`` in `folder`."""
        assert folder is not None  # a store is required
        torch.manual_seed(self.seed)
        space = model.model.trace_copy().get(traceable=False)
        mutables = space.simplify()
        device = "cpu" if self.recipe.accelerator == "cpu" else default_device()
        supernet = build_supernet(space).to(device)
        if self.recipe.channels_last:
            # As in training, also where a resumed trial finds it done: sums round differently.
            supernet.to(memory_format=torch.channels_last)
        # A supernet cannot be asked before it has a path.
        set_path(supernet, draw(mutables, np.random.RandomState(self.seed)))
        data = on_device(load_task(self.task), device)
        searcher = Searcher(
            self.search,
            make_encoding(mutables, self.search.layout),
            mutables,
            self.task.threat,
            data,
            self.seed,
            self.recipe.batch_size,
        )
        state = folder / "search.safetensors"
        if state.is_file():
            searcher.load(state)
        with count_passes(supernet) as passes:
            walk = _Walk(searcher, state, len(data.train) // self.recipe.batch_size, passes)
            result = train(
                supernet,
                data,
                self.recipe,
                self.task.threat,
                folder=folder / "checkpoints",
                seed=self.seed,
                hook=walk,
                on_epoch=lambda record: walk.finish(supernet),
                validate=False,  # the searcher measures
                logs=self.logs(folder),
            )
        walk.end(result.model)
        finalists = searcher.finalists(result.model)
        walk.clock()
        save_weights(result.model, folder / "weights.safetensors", {"phase": self.phase})
        return self._record(searcher, finalists, result.history)

    def _record(
        self, searcher: Searcher, finalists: list[dict[str, Any]], trained: list[EpochRecord]
    ) -> dict[str, Any]:
        best, cost = finalists[0], searcher.cost
        last = next((row for row in finalists if row["last"]), None)
        return {
            "metrics": {
                "default": score(best["losses"], self.search),
                "objective": best["objective"],
                "passes": cost["train_passes"] + cost["measure_passes"],
                "seconds": round(cost["seconds"], 3),
            },
            "history": [
                {**_point(entry, self.search), "loss": record.loss}
                for entry, record in zip(searcher.history, trained, strict=True)
            ],
            "search": {
                "losses": list(self.search.objective.names),
                "signal": searcher.signal.record(),
                "best": best["sample"],
                "last": None if last is None else last["sample"],
                "initial": searcher.encoding.decode(searcher.logits.initial),
                "finalists": finalists,
                "drift": searcher.logits.drift(),
                "predictor": searcher.predictor_quality(),
                "cost": cost,
                "epochs": searcher.history,
            },
        }


class _Walk:
    """Training hook: gives every batch its path, and ends epochs that a kill left open.

    Batches of an epoch are shared evenly among its paths, one after the other. The number of
    batches and of passes is part of the training's checkpoints.
    """

    def __init__(self, searcher: Searcher, path: Path, steps: int, passes: Passes) -> None:
        self.searcher, self.path, self.steps, self.passes = searcher, path, steps, passes
        self.batches, self.earlier = 0, Passes()
        self.drawn: tuple[int, list[Sample]] | None = None  # paths of the epoch
        self.taken: int | None = None  # the one that the supernet computes
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        """See :class:`nni_robust.training.Hook`."""
        epoch, batch = divmod(self.batches, self.steps)
        if epoch > len(self.searcher.history):  # a kill came between training and measuring
            self.finish(model)
        if self.drawn is None or self.drawn[0] != epoch:
            self.drawn = epoch, self.searcher.paths(epoch)
            self.taken = None
        paths = self.drawn[1]
        path = batch * len(paths) // self.steps
        if path != self.taken:  # a supernet has thousands of modules; walking them takes a while
            set_path(model, paths[path])
            self.taken = path
        self.batches += 1

    def finish(self, supernet: Any) -> None:
        """Measure the epoch that has just been trained, unless it has been."""
        if self.batches // self.steps <= len(self.searcher.history):
            return
        entry = self.searcher.finish_epoch(supernet)
        self.searcher.cost["train_passes"] = self.count().equivalent
        self.clock()
        self.searcher.save(self.path)
        point = _point(entry, self.searcher.settings)
        if "default" in point:
            report_epoch({k: v for k, v in point.items() if k not in ("epoch", "phase")})

    def end(self, supernet: Any) -> None:
        """Measure the last epoch, if a kill came between its training and its measurement."""
        self.batches = len(self.searcher.plan) * self.steps
        self.finish(supernet)

    def clock(self) -> None:
        """Add the time since the last call."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.searcher.cost["seconds"] += wall - self.wall
        self.searcher.cost["cpu_seconds"] += cpu - self.cpu
        self.wall, self.cpu = wall, cpu

    def count(self) -> Passes:
        """Passes of the training, those before an interruption included."""
        return Passes(
            self.earlier.backward + self.passes.backward,
            self.earlier.forward + self.passes.forward,
        )

    def state_dict(self) -> dict[str, Any]:
        """See :class:`nni_robust.training.StatefulHook`."""
        return {"batches": self.batches, **dataclasses.asdict(self.count())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`nni_robust.training.StatefulHook`."""
        self.batches = int(state["batches"])
        self.earlier = Passes(int(state["backward"]), int(state["forward"]))


def _point(entry: Mapping[str, Any], settings: SearchSettings) -> dict[str, Any]:
    """An epoch as a point of the curve: the mean of its paths."""
    point: dict[str, Any] = {"epoch": entry["epoch"], "phase": entry["phase"]}
    if entry.get("losses"):
        mean = np.mean(entry["losses"], axis=0).tolist()
        point["default"] = score(mean, settings)
        point["objective"] = float(np.mean(entry["objective"]))
        point["drift"] = entry["drift"]["rms"]
    return point


def on_device(data: DataSplits, device: str) -> DataSplits:
    """The splits with their pictures on a device."""
    return dataclasses.replace(
        data, train=data.train.to(device), validation=data.validation.to(device)
    )
