"""Rejection of candidates by their FSP distance before they cost any fine-tuning.

RobNet (Guo et al., CVPR 2020, arXiv 1911.10695), section 3.5 and appendix F: of 300 cell-free
candidates with the supernet's weights 68 survive, and only these are fine-tuned. All draws are
measured in one NNI trial of its own, because each alone takes seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nni

from nni_robust.analysis.fsp_measure import fsp_record
from nni_robust.analysis.rejection import KEEP, reject_by_fsp
from nni_robust.attacks import NonFiniteOutput
from nni_robust.config import as_mapping, parse, strict
from nni_robust.data import load_task
from nni_robust.errors import UserError
from nni_robust.sampling import Sample
from nni_robust.store import (
    Store,
    append_record,
    content_key,
    open_store,
    read_json,
    read_records,
    write_json,
)
from nni_robust.supernet import build_supernet, inherit
from nni_robust.task import Task
from nni_robust.training import Recipe, recalibrate_bn
from nni_robust.training.weights import load_weights
from nni_robust.trial import StoredEvaluator, default_device

__all__ = ["FspScreening", "Screen", "hand_over", "survivors"]

_SAMPLES = "samples.json"


@dataclasses.dataclass(frozen=True)
class Screen:
    """Settings of a screening.

    Parameters
    ----------
    draws
        Candidates that are drawn and measured (300 in the paper).
    keep
        Share that survives, those with the smallest distance; None is 68/300, the paper's share.
    threshold
        Instead of `keep`: largest distance that survives. The paper's 0.006 is of no use for other
        weights than its own, see :mod:`nni_robust.analysis.rejection`.
    pictures
        Search-validation pictures that the distance is measured on.
    last
        Cells that count, from the end; None is half of them (10 of 20 in the paper).
    reduce
        ``"mean"`` or ``"sum"`` over the entries of the FSP matrices.

    Raises
    ------
    UserError
        If a setting is out of range.
    """

    draws: int = 300
    keep: float | None = None
    threshold: float | None = None
    pictures: int = 1000
    last: int | None = None
    reduce: Literal["mean", "sum"] = "mean"

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for name in ("draws", "pictures"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"strategy.screen.{name}: {getattr(self, name)} is not allowed; at least 1 is"
                )
        try:
            reject_by_fsp([], keep=self.keep, threshold=self.threshold)  # checks the two
        except UserError as e:
            raise UserError(f"strategy.screen: {e}") from None

    def most(self, candidates: int) -> int:
        """Candidates that are fine-tuned at most, where `candidates` are wanted."""
        if self.threshold is not None:
            return min(candidates, self.draws)
        return min(candidates, max(1, round((self.keep or KEEP) * self.draws)))


@nni.trace
class FspScreening(StoredEvaluator):
    """Measure the FSP distances of many samples with the supernet's weights, in one trial.

    Killed and started again, it goes on with the sample where it was.

    Parameters
    ----------
    task, train
        Settings of a :class:`nni_robust.task.Task` and a :class:`nni_robust.training.Recipe`, whose
        attack is used.
    supernet
        Key of the supernet in the store.
    samples
        Key of the samples in the store, see :func:`hand_over`.
    store
        Folder of the run's store.
    pictures, reduce
        See :class:`Screen`.
    recalibrate_batches
        Batches of training pictures for each sample's own batch-norm statistics.
    seed
        Of the recalibration and of the attack, as of the candidates' evaluation.
    """

    phase = "screening"
    uses_sample = False
    attacked = True

    def __init__(
        self,
        *,
        task: Mapping[str, Any],
        train: Mapping[str, Any],
        supernet: str,
        samples: str,
        store: str,
        pictures: int = 1000,
        reduce: Literal["mean", "sum"] = "mean",
        recalibrate_batches: int = 8,
        seed: int = 0,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.recipe = parse(Recipe, train, "evaluator.train")
        self.supernet, self.samples, self.store = supernet, samples, store
        self.pictures, self.reduce = pictures, reduce
        self.recalibrate_batches, self.seed = recalibrate_batches, seed

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "task": as_mapping(self.task),
            "train": as_mapping(self.recipe),
            "supernet": self.supernet,
            "samples": self.samples,
            "pictures": self.pictures,
            "reduce": self.reduce,
            "recalibrate_batches": self.recalibrate_batches,
            "seed": self.seed,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """The distances are ``"screened"`` of the record: one entry per sample, in order."""
        assert folder is not None  # a store is required
        store, start = open_store(str(self.store)), time.monotonic()
        supernet = build_supernet(model.model.trace_copy().get(traceable=False))
        load_weights(supernet, store.file(self.supernet, "weights.safetensors"))
        data = load_task(self.task)
        samples = read_json(store.file(self.samples, _SAMPLES))
        done = folder / "screened.jsonl"
        for sample in samples[len(read_records(done)) :]:
            append_record(done, self._measured(supernet, sample, data))
        screened = read_records(done)
        known = [r for r in screened if "distance" in r]
        if not known:
            raise UserError(f"zero candidates left: none can be measured: {screened[0]['error']}")
        return {
            "metrics": {
                "default": sum(r["robust"] for r in known) / len(known),
                "clean": sum(r["clean"] for r in known) / len(known),
                "seconds": round(time.monotonic() - start, 3),
            },
            "screened": screened,
        }

    def _measured(self, supernet: Any, sample: Sample, data: Any) -> dict[str, Any]:
        network = inherit(supernet, sample).to(default_device())
        if self.recalibrate_batches:
            recalibrate_bn(
                network,
                data.train,
                batches=self.recalibrate_batches,
                batch_size=min(len(data.train), self.recipe.batch_size),
                seed=self.seed,
            )
        try:
            return fsp_record(
                network,
                data.validation,
                self.recipe,
                self.task.threat,
                pictures=self.pictures,
                reduce=self.reduce,
                seed=self.seed,
            )
        except (NonFiniteOutput, ValueError) as e:  # a network that is broken is rejected
            return {"error": str(e)}


def hand_over(store: Store, samples: Sequence[Sample]) -> str:
    """Write samples into the store (300 of them are too much for a trial's parameters).

    Returns
    -------
    str
        The key that :class:`FspScreening` takes.
    """
    key = content_key("samples", list(samples))
    write_json(store.folder(key) / _SAMPLES, list(samples))
    return key


def survivors(screened: Sequence[Mapping[str, Any]], screen: Screen, most: int) -> list[int]:
    """Positions of the samples that are fine-tuned, in the order of the draws.

    Parameters
    ----------
    screened
        Of the screening's record.
    screen
        The settings.
    most
        Of more survivors, the ones with the smallest distance.

    Raises
    ------
    UserError
        If nobody survives.
    """
    known = [k for k, entry in enumerate(screened) if "distance" in entry]
    found = reject_by_fsp(
        [screened[k]["distance"] for k in known],
        keep=screen.keep,
        threshold=screen.threshold,
        last=screen.last,
    )
    if not found.kept:
        raise UserError(
            f"zero candidates left: strategy.screen.threshold {screen.threshold} is below the "
            f"smallest distance of {len(known)} draws, {min(found.scores, default=0):.3g}"
        )
    best = sorted(found.kept, key=lambda position: found.scores[position])[:most]
    return sorted(known[position] for position in best)
