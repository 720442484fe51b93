"""From a network to its record: train, attack, measure curves, save."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nni_robust.cost import measure_cost
from nni_robust.data import DataSplits, Images
from nni_robust.reliability import check_training
from nni_robust.training import Recipe, recalibrate_bn, train
from nni_robust.training.weights import save_weights
from nni_robust.trial import PROGRESS, CurveReporter, default_device

from ._checks import tutoring
from ._curves import EXAMPLES, measure_curves, save_examples
from ._scoring import Score, attack_score, spectrum_score

if TYPE_CHECKING:
    from .adversarial_training import AdversarialTraining

__all__ = ["assess"]


def assess(
    evaluator: AdversarialTraining,
    network: nn.Module,
    folder: Path | None,
    data: DataSplits,
    teacher: nn.Module | None,
) -> dict[str, Any]:
    """Train a network as the evaluator says, and say what it is worth.

    Parameters
    ----------
    network
        Fresh, or with weights that it inherits.
    folder
        Of checkpoints, of what attacks have found so far, and of the weights at the end; a killed
        assessment goes on from there. None keeps nothing.
    data
        The task's.
    teacher
        Of a distillation.

    Returns
    -------
    The record, see :meth:`nni_robust.trial.StoredEvaluator.measure`.
    """
    e = evaluator
    network = network.to(default_device())
    if e.inherits and e.recalibrate_batches:
        recalibrate_bn(
            network,
            data.train,
            batches=e.recalibrate_batches,
            batch_size=min(len(data.train), (e.recipe or Recipe()).batch_size),
            seed=e.seed,
        )
    fsp = _fsp(e, network, data)
    network, history, kept, seconds = _trained(e, network, folder, data, teacher)
    pictures = data.test if e.split == "test" else data.validation
    score = _score(e, network, pictures, folder)
    collapse = check_training(history[:kept], data.num_classes)
    cost = measure_cost(network, data.input_shape)
    curves, checked = measure_curves(
        network,
        pictures,
        e.task.threat,
        eps_values=e.eps_values,
        steps=e.steps,
        corruptions=e.corruptions,
        limit=e.score_limit,
        seed=e.seed,
        folder=None if folder is None else folder / PROGRESS,
    )
    reliability = score.reliability.replaced([collapse])
    for more in checked:
        reliability = reliability.merged(more)
    record: dict[str, Any] = {
        "metrics": {
            **score.metrics,
            "params": cost.params,
            "macs": cost.macs,
            "seconds": round(seconds + score.seconds, 3),
        },
        **score.more,
        "reliability": reliability.as_dict(),
        "history": history,
        "kept_epoch": kept,
    }
    if fsp is not None:
        record["fsp"] = fsp
    record |= curves
    if folder is not None:
        save_weights(network, folder / "weights.safetensors", {"phase": e.phase})
        if e.examples and e.attacks:
            save_examples(
                network,
                pictures,
                e.attacks[-1],
                e.task.threat,
                folder / EXAMPLES,
                number=e.examples,
                seed=e.seed,
            )
    return record


def _trained(
    e: AdversarialTraining,
    network: nn.Module,
    folder: Path | None,
    data: DataSplits,
    teacher: nn.Module | None,
) -> tuple[nn.Module, list[dict[str, Any]], int, float]:
    """The trained network, its curve, the epoch that was kept, and the seconds that it took."""
    if e.recipe is None:
        return network, [], 0, 0.0
    result = train(
        network,
        data,
        e.recipe,
        e.task.threat,
        folder=folder / "checkpoints" if folder else None,
        seed=e.seed,
        on_epoch=CurveReporter(),
        teacher=None if teacher is None else teacher.to(default_device()),
        wrap=tutoring(e.tutors),
        logs=e.logs(folder),
    )
    history = [dataclasses.asdict(record) for record in result.history]
    return result.model, history, result.kept_epoch, result.seconds


def _score(
    e: AdversarialTraining, network: nn.Module, pictures: Images, folder: Path | None
) -> Score:
    """What the trained network is worth."""
    progress = None if folder is None else folder / PROGRESS
    limit, seed = e.score_limit, e.seed
    if e.strengths is None:
        return attack_score(
            network, pictures, e.attacks, e.task.threat, limit=limit, seed=seed, folder=progress
        )
    return spectrum_score(
        network,
        pictures,
        e.strengths,
        e.strength_weights,
        e.attacks,
        e.task.threat,
        limit=limit,
        seed=seed,
        folder=progress,
    )


def _fsp(e: AdversarialTraining, network: nn.Module, data: DataSplits) -> dict[str, Any] | None:
    """FSP distances of the given weights, where they are asked for and the weights are any."""
    if e.fsp is None or (not e.inherits and e.recipe is not None):
        return None
    from nni_robust.analysis.fsp_measure import fsp_record

    return fsp_record(
        network,
        data.validation,
        e.recipe or Recipe(),
        e.task.threat,
        pictures=e.fsp,
        seed=e.seed,
    )
