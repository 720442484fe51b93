"""Everything that can be wrong with an experiment is found here, before any work starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from nni_robust import registry
from nni_robust.architecture.space import open_space
from nni_robust.config import as_mapping
from nni_robust.data import DataSplits, load_task
from nni_robust.errors import UserError
from nni_robust.nni_adapter.terminal import check_port
from nni_robust.sampling import draw_distinct
from nni_robust.training import check_logs

from ._settings import check_settings
from ._trials import manager_ip, platform, serves_store, training_service, trial_interpreter
from .schema import Experiment

__all__ = ["build_parts", "check_writable", "preflight"]


def preflight(experiment: Experiment) -> DataSplits:
    """Check data, sizes, attacks, space and resources of an experiment.

    Returns
    -------
    The loaded data (train and validation only).

    Raises
    ------
    UserError
        On the first problem.
    """
    data = load_task(experiment.task)
    evaluator = build_evaluator(experiment, store=None)
    strategy = build_strategy(experiment)
    check_settings(experiment, evaluator, strategy, data)
    if getattr(strategy, "trials", None) is None and experiment.nni.trials is None:
        raise UserError(
            f"nni.trials is missing: strategy '{experiment.strategy.name}' does not say how "
            "many trials it "
            "needs"
        )
    _check_space(experiment, data, fsp=getattr(evaluator, "fsp", None) is not None)
    if experiment.nni.engine == "ts":
        training_service(experiment)
        trial_interpreter(experiment)
        if platform(experiment) == "local" and experiment.nni.trial_python is None:
            check_logs(experiment.nni.log, "nni.log")
        if serves_store(experiment):
            manager_ip(experiment)
            check_port(experiment.nni.store_port, "store_port")
    gpus = torch.cuda.device_count()
    if experiment.nni.trial_gpus > gpus and platform(experiment) == "local":
        raise UserError(
            f"nni.trial_gpus: {experiment.nni.trial_gpus} is more than the {gpus} GPUs of this "
            "machine"
        )
    return data


def build_parts(experiment: Experiment, data: DataSplits, store: str) -> tuple[Any, Any, Any]:
    """The space, the evaluator and the strategy of an experiment."""
    evaluator = build_evaluator(experiment, store)
    # A large teacher's weights take seconds and gigabytes, and a look-up needs none of them.
    builds = getattr(evaluator, "builds_networks", True)
    with contextlib.nullcontext() if builds else torch.device("meta"):
        space = _build(
            registry.search_spaces, experiment, "space", {"num_classes": data.num_classes}
        )
    return space, evaluator, build_strategy(experiment)


def build_evaluator(experiment: Experiment, store: str | None) -> Any:
    """The evaluator; it gets the task, the seed and the store unless the file says otherwise."""
    given: dict[str, Any] = {"task": as_mapping(experiment.task), "seed": experiment.seed}
    if store is not None:
        given["store"] = store
    return _build(registry.evaluators, experiment, "evaluator", given)


def build_strategy(experiment: Experiment) -> Any:
    """The strategy; it gets the experiment's seed unless the file says otherwise."""
    return _build(registry.strategies, experiment, "strategy", {"seed": experiment.seed})


def _build(known: registry.Registry, experiment: Experiment, section: str, given: Any) -> Any:
    part = getattr(experiment, section)
    cls = known.get(part.name)
    allowed = registry.constructor_arguments(cls)
    usable = {k: v for k, v in given.items() if allowed is None or k in allowed}
    try:
        return cls(**{**usable, **part.arguments})
    except UserError:
        raise
    except (TypeError, ValueError) as e:
        raise UserError(f"{section} '{part.name}': {' '.join(str(e).split())}") from e


def _check_space(experiment: Experiment, data: DataSplits, fsp: bool) -> None:
    """Build one random network without weights and push a picture's shape through it."""
    import numpy as np

    part = experiment.space
    space = open_space(part.name, part.arguments, data.num_classes)
    with torch.device("meta"):
        sample = draw_distinct(1, space.simplify(), np.random.RandomState(experiment.seed))[0]
        network = space.freeze(sample).eval()
        try:
            with torch.no_grad():
                logits = network(torch.zeros(2, *data.input_shape))
        except UserError:
            raise
        except (RuntimeError, ValueError) as e:
            raise UserError(
                f"space '{experiment.space.name}' does not take {data.name}'s pictures of shape "
                f"{data.input_shape}: {e}"
            ) from e
    if fsp:
        from nni_robust.analysis.fsp import fsp_taps

        fsp_taps(network)  # refuses a network without cells
    if logits.shape[-1] < data.num_classes:
        raise UserError(
            f"space '{experiment.space.name}' has {logits.shape[-1]} outputs, fewer than the "
            f"{data.num_classes} classes of {data.name}"
        )


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written.

    Raises
    ------
    UserError
        If it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(
            f"output folder '{folder}' cannot be written: {os.strerror(e.errno or 0)}"
        ) from e
