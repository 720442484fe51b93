"""What a cheaper signal loses: the same architectures and weights, measured in every way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nni
import numpy as np
import torch

from nni_robust.config import as_mapping, parse, strict
from nni_robust.data import derive_seed, load_task
from nni_robust.errors import UserError
from nni_robust.predictor import rank_agreement
from nni_robust.sampling import draw_distinct
from nni_robust.store import open_store
from nni_robust.supernet import build_supernet
from nni_robust.task import Task
from nni_robust.training import Recipe
from nni_robust.training.weights import load_weights
from nni_robust.trial import StoredEvaluator, default_device

from ._wide_spectrum_searcher import take_path
from ._wide_spectrum_settings import SearchSettings
from ._wide_spectrum_signals import make_signal, measure_losses
from ._wide_spectrum_training import on_device

__all__ = ["Comparison", "SignalComparison"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Settings of a comparison of signals.

    Parameters
    ----------
    candidates
        Architectures, drawn at random, that every signal measures.
    reference
        Label of the signal that the others are compared with; its search's supernet is used.
    repeat
        Measure the reference also on other pictures of the search-validation split, as many as
        before: how well does it agree with itself?
    pictures
        Search-validation pictures of the comparison; None is ``measure.pictures`` of each search.
    """

    candidates: int = 30
    reference: str = "naive"
    repeat: bool = True
    pictures: int | None = None

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise UserError(
                f"strategy.compare.candidates: {self.candidates} is not allowed; at least 2 are"
            )
        if self.pictures is not None and self.pictures < 1:
            raise UserError(
                f"strategy.compare.pictures: {self.pictures} is not allowed; at least 1 is"
            )


@nni.trace
class SignalComparison(StoredEvaluator):
    """Measure the same architectures, with the same supernet, by every signal.

    Parameters
    ----------
    task, train
        As of the searches.
    searches
        Label to the settings of its search, resolved.
    compare
        Settings of a :class:`Comparison`.
    supernet
        Key of the search whose supernet is used.
    seed, store
        As of the searches.
    """

    phase = "comparison"
    uses_sample = False

    def __init__(
        self,
        *,
        task: Mapping[str, Any],
        train: Mapping[str, Any],
        searches: Mapping[str, Any],
        compare: Mapping[str, Any],
        supernet: str,
        store: str,
        seed: int = 0,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.recipe = parse(Recipe, train, "strategy.supernet")
        self.compare = parse(Comparison, compare, "strategy.compare")
        self.searches = {
            label: parse(SearchSettings, search, f"strategy.signals.{label}").resolved()
            for label, search in searches.items()
        }
        self.supernet, self.seed, self.store = supernet, seed, store

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "task": as_mapping(self.task),
            "train": as_mapping(self.recipe),
            "searches": {label: as_mapping(s) for label, s in self.searches.items()},
            "compare": as_mapping(self.compare),
            "supernet": self.supernet,
            "seed": self.seed,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Measure; the record's ``comparison`` has a row for each signal."""
        device = default_device()
        data = on_device(load_task(self.task), device)
        space = model.model.trace_copy().get(traceable=False)
        mutables = space.simplify()
        samples = draw_distinct(
            self.compare.candidates,
            mutables,
            np.random.RandomState(derive_seed(self.seed, "comparison") % 2**32),
            uniform=True,
        )
        supernet = build_supernet(space).to(device)
        weights = open_store(str(self.store)).file(self.supernet, "weights.safetensors")
        load_weights(supernet, weights)
        networks = [
            take_path(
                supernet,
                sample,
                data,
                batches=self.searches[self.compare.reference].measure.recalibrate_batches,
                batch_size=self.recipe.batch_size,
                seed=derive_seed(self.seed, "recalibrate"),
            )
            for sample in samples
        ]
        jobs = [(label, s, 0) for label, s in self.searches.items()]
        if self.compare.repeat:
            settings = self.searches[self.compare.reference]
            limit = self.compare.pictures or settings.measure.pictures
            if limit is None or 2 * limit > len(data.validation):
                raise UserError(
                    "strategy.compare.repeat: other pictures are needed; set compare.pictures to "
                    f"at most half of the {len(data.validation)} search-validation pictures"
                )
            jobs.append((f"{self.compare.reference}, other pictures", settings, limit))
        rows = [self._row(*job, networks, data) for job in jobs]
        reference = next(row for row in rows if row["label"] == self.compare.reference)
        for row in rows:
            row["tau"] = rank_agreement(*(torch.tensor(r["objective"]) for r in (row, reference)))
            for name in ("passes", "seconds", "cpu_seconds"):
                row[f"{name}_share"] = row[name] / reference[name]
        return {
            "metrics": {
                "default": min(row["tau"] or 0.0 for row in rows),
                "seconds": round(sum(row["seconds"] for row in rows), 3),
            },
            "comparison": {"samples": samples, "rows": rows},
        }

    def _row(
        self, label: str, settings: SearchSettings, first: int, networks: list[Any], data: Any
    ) -> dict[str, Any]:
        signal = make_signal(settings, self.task.threat, data, self.seed)
        limit = self.compare.pictures or settings.measure.pictures or len(data.validation)
        pictures = data.validation.take(
            torch.arange(first, min(first + limit, len(data.validation)))
        )
        found = [
            measure_losses(
                signal,
                network,
                pictures,
                settings.objective,
                batch_size=settings.measure.batch_size,
            )
            for network in networks
        ]
        values = settings.objective.value(torch.stack([f.losses for f in found]))
        return {
            "label": label,
            "signal": signal.record(),
            "pictures": len(pictures),
            "objective": values.tolist(),
            "losses": [f.losses.tolist() for f in found],
            "passes": sum(f.passes.equivalent for f in found),
            "seconds": sum(f.seconds for f in found),
            "cpu_seconds": sum(f.cpu_seconds for f in found),
        }
