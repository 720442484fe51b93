"""The searcher of Wsr-NAS: draw, measure, remember, predict, and move the architecture logits.

Cheng et al., "Neural Architecture Search for Wide Spectrum Adversarial Robustness", AAAI 2023, with
the code of zhicheng2T0/Wsr-NAS at 7736f5d. Everything that the search knows besides the supernet's
weights is here; it can be written to one file and taken up again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.data import DataSplits, derive_seed
from nni_robust.predictor import (
    ArchitectureLogits,
    Encoding,
    PredictorFit,
    ReplayMemory,
    rank_agreement,
)
from nni_robust.sampling import Sample
from nni_robust.store import content_key
from nni_robust.supernet import inherit
from nni_robust.threat import ThreatModel
from nni_robust.training import recalibrate_bn
from nni_robust.training.weights import plain_tensors, read_weights, write_tensors

from ._wide_spectrum_settings import SearchSettings
from ._wide_spectrum_signals import EstimatedSignal, Measured, make_signal, measure_losses

__all__ = ["Searcher", "plan_epochs", "take_path"]

#: What a search adds up. Passes: forward-backward passes of a picture, a forward one a third of it,
#: those of recalibration left out. Times: wall times unless they say CPU.
_COSTS = (
    *("seconds", "cpu_seconds", "train_passes", "measure_passes"),
    *("measure_seconds", "measure_cpu_seconds", "predictor_seconds", "recalibrate_seconds"),
)

#: (phase, which warm-up architectures) of an epoch; search epochs draw their own.
Epoch = tuple[str, list[int]]


def plan_epochs(settings: SearchSettings) -> list[Epoch]:
    """What each epoch of the training is for.

    ``"warmup"``: warm-up architectures are trained; ``"build"``: trained and measured;
    ``"search"``: a new draw is trained and measured, and the logits move.
    """
    per_epoch, archs = settings.paths_per_epoch, settings.warmup.archs
    groups = [
        list(range(start, min(start + per_epoch, archs))) for start in range(0, archs, per_epoch)
    ]
    warm: list[Epoch] = [("warmup", group) for group in groups] * settings.warmup.epochs
    build: list[Epoch] = [("build", group) for group in groups]
    return warm + build + [("search", [])] * settings.epochs


def take_path(
    supernet: Any, sample: Sample, data: DataSplits, *, batches: int, batch_size: int, seed: int
) -> nn.Module:
    """A copy of a sub-network with statistics of its own, in evaluation mode.

    The supernet is not touched: what is measured has no influence on its training.
    """
    network = inherit(supernet, sample)
    if batches:
        recalibrate_bn(network, data.train, batches=batches, batch_size=batch_size, seed=seed)
    return network.eval()


class Searcher:
    """State of one search.

    Parameters
    ----------
    settings
        Resolved settings.
    encoding
        Of the space.
    mutables
        The space's ``simplify()``, whose rules samples have to keep.
    threat, data, seed
        Of the task; data on the device of the network.
    batch_size
        Of the training.
    """

    def __init__(
        self,
        settings: SearchSettings,
        encoding: Encoding,
        mutables: Mapping[str, Any],
        threat: ThreatModel,
        data: DataSplits,
        seed: int,
        batch_size: int,
    ) -> None:
        self.settings, self.encoding, self.data, self.seed = settings, encoding, data, seed
        self.batch_size = batch_size
        self.objective = settings.objective
        self.plan = plan_epochs(settings)
        limit = settings.measure.pictures
        self.pictures = data.validation if limit is None else data.validation.head(limit)
        self.logits = ArchitectureLogits(
            encoding,
            settings.alpha,
            tau=settings.tau,
            seed=derive_seed(seed, "alpha"),
            allowed=lambda s: all(m.check_contains(s) is None for m in mutables.values()),
        )
        rows, width = encoding.mask.shape
        self.fit = PredictorFit(
            rows,
            width,
            1 + len(self.objective.strengths),
            settings.predictor,
            derive_seed(seed, "predictor"),
        )
        self.memory = ReplayMemory(settings.memory)
        self.signal = make_signal(settings, threat, data, seed)
        #: One entry for each epoch that is over; JSON-able.
        self.history: list[dict[str, Any]] = []
        self.cost = dict.fromkeys(_COSTS, 0.0)

    # Paths

    def draws(self, epoch: int) -> list[tuple[Tensor, Sample]]:
        """Noise and architecture of every path of an epoch, from the logits as they are now."""
        phase, archs = self.plan[epoch]
        if phase != "search":
            return [self.logits.draw("warmup", a, around=self.logits.initial) for a in archs]
        return [
            self.logits.draw("search", epoch, path) for path in range(self.settings.paths_per_epoch)
        ]

    def paths(self, epoch: int) -> list[Sample]:
        """Architectures that an epoch trains; of one that is over, those that it trained."""
        if epoch < len(self.history):
            return list(self.history[epoch]["paths"])
        return [sample for _, sample in self.draws(epoch)]

    # One epoch

    def finish_epoch(self, supernet: Any) -> dict[str, Any]:
        """Measure what the epoch trained, and move; returns its history entry."""
        epoch = len(self.history)
        phase, _ = self.plan[epoch]
        drawn = self.draws(epoch)
        entry: dict[str, Any] = {
            "epoch": epoch + 1,
            "phase": phase,
            "paths": [sample for _, sample in drawn],
        }
        if phase != "warmup":
            before = self.predict([self.logits.weights(noise).detach() for noise, _ in drawn])
            measured = [self.measure(supernet, sample, epoch) for _, sample in drawn]
            for (noise, _), found in zip(drawn, measured, strict=True):
                self.memory.push(self.logits.weights(noise), found.losses)
            entry["losses"] = [found.losses.tolist() for found in measured]
            entry["objective"] = [float(self.objective.value(m.losses)) for m in measured]
            entry["predicted"] = before if phase == "search" and self.fit_known else None
        if phase == "search":
            self._move(epoch, drawn)
        elif phase == "build" and epoch + 1 == len(self.plan) - self.settings.epochs:
            self._timed_fit(self.settings.predictor.passes_init)
        entry["genotype"] = self.logits.best()
        entry["drift"] = self.logits.drift()
        self.history.append(entry)
        return entry

    @property
    def fit_known(self) -> bool:
        """Whether the predictor has been fitted to anything."""
        return self.fit.fits > 0

    def _move(self, epoch: int, drawn: list[tuple[Tensor, Sample]]) -> None:
        self._timed_fit(self.settings.predictor.passes)
        began = time.perf_counter()
        for step in range(self.settings.alpha.steps):
            if step < len(drawn):
                noise = drawn[step][0]
            else:
                noise, _ = self.logits.draw("step", epoch, step)
            self.logits.step(self.fit.model, self.objective, noise)
        self.cost["predictor_seconds"] += time.perf_counter() - began

    def _timed_fit(self, passes: int) -> None:
        began = time.perf_counter()
        self.fit.fit(self.memory, passes)
        self.cost["predictor_seconds"] += time.perf_counter() - began

    def measure(self, supernet: Any, sample: Sample, epoch: int) -> Measured:
        """Losses of an architecture with the supernet's weights; its cost is added up."""
        how, began = self.settings.measure, time.perf_counter()
        network = take_path(
            supernet,
            sample,
            self.data,
            batches=how.recalibrate_batches,
            batch_size=self.batch_size,
            seed=derive_seed(self.seed, "recalibrate", epoch),
        )
        self.cost["recalibrate_seconds"] += time.perf_counter() - began
        found = measure_losses(
            self.signal,
            network,
            self.pictures,
            self.objective,
            batch_size=how.batch_size,
        )
        self.cost["measure_seconds"] += found.seconds
        self.cost["measure_cpu_seconds"] += found.cpu_seconds
        self.cost["measure_passes"] += found.passes.equivalent
        return found

    def predict(self, weights: list[Tensor]) -> list[float]:
        """Predicted objective of matrices; lower is better."""
        values: list[float] = self.objective.value(self.fit.predict(torch.stack(weights))).tolist()
        return values

    # The end

    def finalists(self, supernet: Any) -> list[dict[str, Any]]:
        """The best architectures, measured side by side with the final weights, best first.

        Measured objectives of different epochs cannot be compared: the supernet got better in the
        meantime. So the result of the last epoch, and those that the predictor puts first among
        all results and paths of the search, are measured again. Each has ``"sample"``,
        ``"objective"``, ``"losses"``, ``"predicted"``, ``"last"``.
        """
        pool: dict[str, Sample] = {}
        for entry in self.history:
            known = entry["paths"] if entry["phase"] != "warmup" else []
            results = [entry["genotype"]] if entry["phase"] == "search" else []
            for sample in (*known, *results):
                pool.setdefault(content_key(sample), sample)
        last = self.logits.best()
        allowed = {key: s for key, s in pool.items() if self.logits.allowed(s)}
        scores = self.predict([self.encoding.encode(s) for s in allowed.values()])
        order = sorted(zip(scores, allowed.items(), strict=True), key=lambda pair: pair[0])
        chosen = [content_key(last)] if self.logits.allowed(last) else []
        allowed.setdefault(content_key(last), last)
        for _, (key, _sample) in order:
            if len(chosen) < self.settings.finalists and key not in chosen:
                chosen.append(key)
        rows = []
        for key in chosen:
            sample = allowed[key]
            found = self.measure(supernet, sample, len(self.plan))
            rows.append(
                {
                    "sample": sample,
                    "objective": float(self.objective.value(found.losses)),
                    "losses": found.losses.tolist(),
                    "predicted": self.predict([self.encoding.encode(sample)])[0],
                    "last": key == content_key(last),
                }
            )
        return sorted(rows, key=lambda row: row["objective"])

    def predictor_quality(self) -> dict[str, Any]:
        """Kendall's tau of objectives predicted before they were measured.

        Losses also fall from epoch to epoch; that is part of what is predicted.
        """
        pairs = [
            pair
            for entry in self.history
            if entry.get("predicted")
            for pair in zip(entry["predicted"], entry["objective"], strict=True)
        ]
        if not pairs:
            return {"tau": None, "n": 0}
        predicted, measured = torch.tensor(pairs, dtype=torch.float64).T
        return {"tau": rank_agreement(predicted, measured), "n": len(pairs)}

    # State

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, in one step."""
        weights, losses = self.memory.tensors()
        tensors = {
            **{f"alpha.{n}": t for n, t in self.logits.tensors().items()},
            **{f"predictor.{n}": t for n, t in self.fit.tensors().items()},
            **{f"signal.{n}": t for n, t in self.signal.tensors().items()},
            "memory.weights": weights,
            "memory.losses": losses,
        }
        state = {
            "history": self.history,
            "fits": self.fit.fits,
            "cost": self.cost,
            "signal": self.signal.record(),
        }
        write_tensors(path, plain_tensors(tensors), {"state": json.dumps(state, allow_nan=False)})

    def load(self, path: Path) -> None:
        """Go on from :meth:`save`."""
        tensors, header = read_weights(path)
        state = json.loads(header["state"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}

        self.logits.load(part("alpha."))
        self.fit.load(part("predictor."), state["fits"])
        self.signal.load(part("signal."))
        if isinstance(self.signal, EstimatedSignal):
            self.signal.resume(state["signal"])
        memory = part("memory.")
        self.memory.load(memory["weights"], memory["losses"])
        self.history, self.cost = state["history"], state["cost"]
