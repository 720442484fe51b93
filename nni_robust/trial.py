"""What every trial of ours has in common: one result per question, kept in the run's store.

A trial is asked for by NNI, by a resumed search, or by NNI again after a crash. Its key is made of
all that determines the result, so whoever asks second gets the stored answer, and nothing is
computed twice.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nni
from nni.nas.evaluator import Evaluator

from nni_robust import __version__
from nni_robust.nni_adapter.identity import adopt, parameter_id
from nni_robust.nni_adapter.metrics import shown_metrics
from nni_robust.nni_adapter.spaces import space_class
from nni_robust.store import Store, content_key, open_store

if TYPE_CHECKING:
    from nni_robust.training import EpochRecord, TrainingLog

__all__ = ["LOG", "PROGRESS", "CurveReporter", "StoredEvaluator", "default_device", "report_epoch"]

#: Environment variable of trials: names of logs that their trainings also write, with commas.
LOG = "NNI_ROBUST_LOG"

#: Folder inside a trial's: what attacks have found so far, until the trial has its record.
PROGRESS = "evaluation"

_log = logging.getLogger(__name__)


class StoredEvaluator(Evaluator):
    """An NNI evaluator whose results are kept in a store.

    Subclasses implement :meth:`settings` and :meth:`measure`.

    Attributes
    ----------
    phase
        What the trial is, as the web UI and the records show it: ``"supernet"``, ``"candidate"``,
        ….
    uses_sample
        Whether the architecture sampled for the trial plays a part (a supernet's does not).
    attacked
        Whether the score is accuracy under attack: NNI's web UI then shows it as ``robust`` too.
    store
        Folder of the run's store, or None to keep nothing.
    """

    phase: str = "candidate"
    uses_sample: bool = True
    attacked: bool = False
    store: str | None = None

    def settings(self) -> dict[str, Any]:
        """Everything besides the architecture that determines the result, JSON-able."""
        raise NotImplementedError

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Do the work of the trial.

        Parameters
        ----------
        model
            NNI's executable model: `model.sample`, `model.model` (class and arguments of the
            space).
        folder
            Where checkpoints and weights belong, or None without a store.

        Returns
        -------
        A JSON-able record with ``"metrics"``: a flat dict of finite numbers with ``"default"``.
        """
        raise NotImplementedError

    def key(self, model: Any) -> str:
        """Name of this trial's result in the store."""
        cls = space_class(model)
        return content_key(
            type(self).__name__,
            self.settings(),
            f"{cls.__module__}.{cls.__qualname__}",
            list(model.model.trace_args),
            dict(model.model.trace_kwargs),
            dict(model.sample) if self.uses_sample else None,
        )

    def finished(self, model: Any) -> dict[str, Any] | None:
        """The metrics of an earlier run of this very trial, or None."""
        if self.store is None:
            return None
        record = Store(self.store).result(self.key(model))
        return record["metrics"] if record else None

    def logs(self, folder: Path | None) -> list[TrainingLog]:
        """What ``$NNI_ROBUST_LOG`` asks for, for a training in `folder` (None: without a store).

        All trainings of a run share one database of MLflow, beside the store.

        Raises
        ------
        UserError
            If a name is unknown, its package is not installed, or there is no place for it.
        """
        from nni_robust.training import open_logs

        names = [name for name in os.environ.get(LOG, "").split(",") if name]
        shared = None
        if self.store is not None and Path(self.store).is_dir():
            shared = Path(self.store).resolve().parent
        title = self.phase if folder is None else f"{self.phase}-{folder.name}"
        return open_logs(names, folder, shared=shared, title=title)

    def _execute(self, model: Any) -> dict[str, Any]:
        """NNI's entry: measure (or look up) and report."""
        if self.store is None:
            record = self.measure(model, None)
        else:
            # Where the trial was sent from the key was made; another machine, without a file that
            # is part of it, would make another one.
            key = getattr(model, "stored_key", None) or self.key(model)
            store = open_store(self.store)
            record = store.once(key, self._kept(model, key))
            # Only now: a kill before loses no attack.
            shutil.rmtree(store.folder(key) / PROGRESS, ignore_errors=True)
        if nni.get_current_parameter() is not None:
            nni.report_final_result(shown_metrics(record["metrics"], attacked=self.attacked))
        return record

    def _kept(self, model: Any, key: str) -> Callable[[Path], dict[str, Any]]:
        def compute(folder: Path) -> dict[str, Any]:
            record = self.measure(model, folder)
            return {
                "phase": self.phase,
                "key": key,
                "trial": os.environ.get("NNI_TRIAL_JOB_ID"),
                "ran": {
                    "host": platform.node(),
                    "nni_robust": __version__,
                    "package": str(Path(__file__).parent),
                },
                "sample": dict(model.sample) if self.uses_sample and model.sample else {},
                **record,
            }

        return compute


def report_epoch(metrics: dict[str, float]) -> None:
    """Send one point of the curve to NNI, where there is an NNI."""
    if nni.get_current_parameter() is not None:
        nni.report_intermediate_result(metrics)


class CurveReporter:
    """Called with the record of an epoch: its point of the curve goes to NNI.

    It can be handed to the processes of a distributed training. Those started anew know nothing of
    the trial that they belong to, and are told its parameter's number.
    """

    def __init__(self) -> None:
        self.parameter_id = parameter_id()

    def __call__(self, record: EpochRecord) -> None:
        adopt(self.parameter_id)
        report_epoch(record.curve_point())


def default_device() -> str:
    """``"cuda"`` where a GPU is visible to this process, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
