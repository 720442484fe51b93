"""Loggers: the curve of a training in TensorBoard, MLflow, or any logger of Lightning.

Each log is told the whole curve after every epoch and writes what it lacks. So what a kill between
a checkpoint and the log took is made up for when the training continues, and nothing comes twice.
TensorBoard and MLflow are written by Lightning's loggers, which need those packages.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.errors import UserError, nearest
from nni_robust.nni_adapter.tensorboard import trial_tensorboard
from nni_robust.redaction import redact, redact_text
from nni_robust.training._records import EpochRecord

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger

__all__ = ["LOGS", "TrainingLog", "check_logs", "close_logs", "open_logs", "write_logs"]

#: Environment variable with the address of an MLflow server or store; MLflow's own.
TRACKING_URI = "MLFLOW_TRACKING_URI"

#: Name of the experiment that trainings belong to in MLflow, unless $MLFLOW_EXPERIMENT_NAME says.
_EXPERIMENT = "nni-robust"

#: Tag of an MLflow run: the training that it belongs to, so that it continues in the same run.
_TAG = "nni_robust.training"

#: End of the names of our event files.
_OURS = ".nni-robust"


class TrainingLog:
    """A log that holds each epoch once.

    Made in the calling process; the logger is opened where the training runs.

    Parameters
    ----------
    make
        From whether the training is a new one to a logger of Lightning and the numbers of the
        epochs that it holds already.
    """

    def __init__(self, make: Callable[[bool], tuple[Logger, set[int]]]) -> None:
        self.make = make
        self.fresh: bool | None = None
        self.logger: Logger | None = None
        self.held: set[int] = set()

    @classmethod
    def of(cls, log: TrainingLog | Logger) -> TrainingLog:
        """A log as it is, or around a logger of Lightning, which holds nothing yet."""
        return log if isinstance(log, TrainingLog) else cls(_Given(log))

    def __call__(self, settings: Mapping[str, Any], history: Sequence[EpochRecord]) -> None:
        """Write what is not held yet of these epochs; the settings first, without secrets.

        The first call is made before the first batch, with the epochs of before an interruption.
        """
        if self.fresh is None:
            self.fresh = not history
        if not history:
            return
        if self.logger is None:
            logger, self.held = self.make(self.fresh)
            if not self.held:
                with contextlib.suppress(NotImplementedError):  # not all can keep settings
                    logger.log_hyperparams(_flat(redact(settings)))
            self.logger = logger
        for record in history:
            if record.epoch not in self.held:
                self.logger.log_metrics(_values(record), step=record.epoch)
                self.held.add(record.epoch)
        self.logger.save()

    def close(self, status: str) -> None:
        """The training has ended: ``"success"`` or ``"failed"``."""
        if self.logger is not None:
            self.logger.finalize(status)


def write_logs(
    logs: Sequence[TrainingLog], settings: Mapping[str, Any], history: Sequence[EpochRecord]
) -> None:
    """Tell all logs the curve; one that fails is warned of and tried again after the next epoch."""
    for log in logs:
        _or_warn(log, settings, history)


def close_logs(logs: Sequence[TrainingLog], status: str) -> None:
    """Tell all logs how the training ended."""
    for log in logs:
        _or_warn(log.close, status)


def _or_warn(action: Callable[..., None], *arguments: Any) -> None:
    """A server that cannot be reached is no reason to lose a training."""
    try:
        action(*arguments)
    except Exception as e:
        told = redact_text(" ".join(str(e).split()))
        warnings.warn(f"a log was not written: {type(e).__name__}: {told}", stacklevel=4)


class _Given:
    """A logger of the caller's."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def __call__(self, fresh: bool) -> tuple[Logger, set[int]]:
        return self.logger, set()


class _TensorBoard:
    """Event files in a folder; those of an earlier start are written again.

    Not continued: TensorBoard orders files by whole seconds. ``purge_step`` tells one that is
    running to forget what it has read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, fresh: bool) -> tuple[Logger, set[int]]:
        from lightning_fabric.loggers import TensorBoardLogger

        for old in self.folder.glob(f"events.out.tfevents.*{_OURS}"):
            old.unlink()
        return TensorBoardLogger(
            self.folder,
            name="",
            version="",
            default_hp_metric=False,
            purge_step=0,
            filename_suffix=_OURS,
        ), set()


class _MLflow:
    """One run of MLflow for each training, found again by its tag."""

    def __init__(self, uri: str, training: str, title: str) -> None:
        self.uri, self.training, self.title = uri, training, title

    def __call__(self, fresh: bool) -> tuple[Logger, set[int]]:
        from mlflow.tracking import MlflowClient
        from pytorch_lightning.loggers import MLFlowLogger

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        client = MlflowClient(self.uri)
        known = client.get_experiment_by_name(experiment)
        found = []
        if known is not None and not fresh:
            found = client.search_runs([known.experiment_id], f"tags.`{_TAG}` = '{self.training}'")
        logger = MLFlowLogger(
            experiment,
            run_name=self.title,
            tracking_uri=self.uri,
            tags={_TAG: self.training},
            run_id=found[0].info.run_id if found else None,
        )
        if not found:
            return logger, set()
        run = found[0].info.run_id
        client.update_run(run, "RUNNING")
        return logger, {metric.step for metric in client.get_metric_history(run, "loss")}


#: Names of logs, and the packages that they need.
LOGS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def check_logs(names: Sequence[str], where: str) -> None:
    """Refuse names that are no logs, or whose package is not installed.

    Parameters
    ----------
    names
        As the user gave them.
    where
        Their key, for messages.

    Raises
    ------
    UserError
        For the first one.
    """
    for name in names:
        if name not in LOGS:
            raise UserError(
                f"{where}: {name!r} is not allowed{nearest(str(name), LOGS)} "
                f"(allowed: {', '.join(LOGS)})"
            )
        missing = [package for package in LOGS[name] if find_spec(package) is None]
        if name == "mlflow" and TRACKING_URI in os.environ and "mlflow" not in missing:
            continue  # a server needs no store here
        if missing:
            raise UserError(
                f"{where}: '{name}' needs the package '{missing[0]}', which is not installed; "
                f"pip install 'nni-robust[{name}]'"
            )


def open_logs(
    names: Sequence[str],
    folder: str | Path | None,
    *,
    shared: str | Path | None = None,
    title: str | None = None,
) -> list[TrainingLog]:
    """Logs by their names, for :func:`nni_robust.training.train`.

    Parameters
    ----------
    names
        ``"tensorboard"``: event files in ``tensorboard/`` of the training's folder, or, inside a
        trial of NNI, where NNI's web UI looks for them.
        ``"mlflow"``: a run in the store or server that ``$MLFLOW_TRACKING_URI`` names, else in
        ``mlflow.db`` in the folder.
    folder
        Of the training; None is that of the NNI trial that this is.
    shared
        Folder of ``mlflow.db`` where several trainings share one; None is `folder`.
    title
        What the run is called in MLflow; None is the folder's name.

    Raises
    ------
    UserError
        If a name is unknown, its package is not installed, or there is neither folder nor trial.
    """
    check_logs(names, "log")
    if not names:
        return []
    trial = trial_tensorboard()
    if folder is None and trial is None:
        raise UserError(f"log: '{names[0]}' needs a folder, and there is none")
    home = Path(folder or str(trial)).absolute()
    logs = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            logs.append(TrainingLog(_TensorBoard(trial or home / "tensorboard")))
            continue
        # Versions 3.4 and later tell their makers of every use, unless they are told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get(TRACKING_URI) or f"sqlite:///{_database(shared or home)}"
        logs.append(TrainingLog(_MLflow(uri, str(home), title or home.name)))
    return logs


def _database(folder: str | Path) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder).absolute() / "mlflow.db"


def _values(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch that were measured."""
    names = ("loss", "lr", "train_robust", "val_clean", "val_robust", "seconds")
    values = {name: getattr(record, name) for name in names}
    return {name: float(value) for name, value in values.items() if value is not None}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys; lists as text."""
    if not isinstance(value, Mapping):
        plain = value if isinstance(value, (bool, int, float, str)) else str(value)
        return {prefix: plain}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
