"""Train one architecture adversarially, attack it, report clean and robust accuracy.

The evaluation of a candidate as in RobNet (CVPR 2020, section 3.2-3.3): inherit the supernet's
weights where there is one, train a few epochs on adversarial examples, attack on the
search-validation split. With no supernet it is plain adversarial training from scratch. The authors
selected on the test set (robnet spec, j.7); here the search only ever sees the validation split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nni
from torch import nn

from nni_robust.config import as_mapping, parse
from nni_robust.cost import measure_cost
from nni_robust.data import DataSplits, load_task
from nni_robust.errors import UserError
from nni_robust.evaluation import eps_curve, evaluate
from nni_robust.supernet import build_supernet, inherit
from nni_robust.task import Task
from nni_robust.training import EpochRecord, Recipe, recalibrate_bn, train
from nni_robust.training.weights import load_weights, save_weights
from nni_robust.trial import StoredEvaluator, default_device, report_epoch

__all__ = ["AdversarialTraining"]

_RECIPE_DEFAULTS: Mapping[str, Any] = {}


@nni.trace
class AdversarialTraining(StoredEvaluator):
    """Evaluate an architecture by adversarial training and attacks.

    The final metric is a flat dict: ``default`` (the lowest accuracy under the attacks, what
    strategies maximise), ``clean``, one key per attack such as ``pgd20@8/255``, ``params``,
    ``macs``, ``seconds``. Accuracies lie in [0, 1]. The curve over epochs goes out as intermediate
    metrics.

    Parameters
    ----------
    task
        Settings of a :class:`nni_robust.task.Task`: data, threat, split.
    train
        Settings of a :class:`nni_robust.training.Recipe`; None does not train, only attacks.
    attacks
        Attacks that score the network, such as ``["fgsm", "pgd20"]``.
    score_limit
        Score on that many pictures only; None is the whole split.
    recalibrate_batches
        Batches of training pictures for fresh batch-norm statistics of inherited weights (a
        supernet's statistics mix all paths); 0 keeps the supernet's.
    seed
        Seed of initialisation, training and attacks.
    store
        Folder of the run's store: results, weights and checkpoints are kept there, and a question
        asked twice is answered from it.
    supernet
        Key of the supernet in the store whose weights a candidate inherits.
    phase
        Name of the trial in records and web UI.
    split
        ``"validation"`` for a search; ``"test"`` only for the final networks, after the search.
    eps_values
        Strengths of an accuracy-versus-eps curve, in pixel units; empty for none.
    fsp
        Measure the FSP distance of each cell, and the accuracies that go with it, on that many
        validation pictures; None is off. It is measured on the weights that a network inherits,
        before they are fine-tuned (RobNet, section 3.5), with the attack of the training; a network
        that is trained from scratch has no such weights, and is not measured.

    Raises
    ------
    UserError
        If a setting is impossible.
    """

    def __init__(
        self,
        *,
        task: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = _RECIPE_DEFAULTS,
        attacks: Sequence[Any] = ("pgd20",),
        score_limit: int | None = None,
        recalibrate_batches: int = 8,
        seed: int = 0,
        store: str | None = None,
        supernet: str | None = None,
        phase: str = "candidate",
        split: str = "validation",
        eps_values: Sequence[float] = (),
        fsp: int | None = None,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.recipe = None if train is None else parse(Recipe, train, "evaluator.train")
        self.attacks = list(attacks)
        if not self.attacks:
            raise UserError("evaluator.attacks: at least one attack is needed, such as pgd20")
        if split not in ("validation", "test"):
            raise UserError(f"evaluator.split: {split!r} is not allowed; allowed: validation, test")
        if fsp is not None and (isinstance(fsp, bool) or not isinstance(fsp, int) or fsp < 1):
            raise UserError(f"evaluator.fsp: {fsp!r} is not allowed; a whole number >= 1 is")
        self.fsp = fsp
        self.score_limit, self.recalibrate_batches = score_limit, recalibrate_batches
        self.seed, self.store, self.supernet = seed, store, supernet
        self.phase, self.split, self.eps_values = phase, split, list(eps_values)

    def variant(self, **changes: Any) -> AdversarialTraining:
        """A copy with some arguments changed, for another phase of the same run."""
        return AdversarialTraining(**{**self.settings(), "store": self.store, **changes})

    def extra_repr(self) -> str:
        return f"task={self.task}, attacks={self.attacks}, phase={self.phase}"

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "task": as_mapping(self.task),
            "train": None if self.recipe is None else as_mapping(self.recipe),
            "attacks": self.attacks,
            "score_limit": self.score_limit,
            "recalibrate_batches": self.recalibrate_batches,
            "seed": self.seed,
            "supernet": self.supernet,
            "phase": self.phase,
            "split": self.split,
            "eps_values": self.eps_values,
            "fsp": self.fsp,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Build (or inherit), train, attack."""
        import torch

        torch.manual_seed(self.seed)
        network = model.executable_model() if self.supernet is None else self._inherited(model)
        return self._assess(network, folder)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Assess a plain network outside of NNI, without a store; returns the record."""
        return self._assess(model, None)

    def _inherited(self, model: Any) -> nn.Module:
        if self.store is None:
            raise UserError(
                "evaluator.store: inheriting a supernet's weights needs the run's store"
            )
        supernet = build_supernet(model.model.trace_copy().get(traceable=False))
        load_weights(supernet, Path(self.store, str(self.supernet), "weights.safetensors"))
        return inherit(supernet, dict(model.sample))

    def _assess(self, network: nn.Module, folder: Path | None) -> dict[str, Any]:
        data = load_task(self.task, test=self.split == "test")
        network = network.to(default_device())
        if self.supernet is not None and self.recalibrate_batches:
            recalibrate_bn(
                network,
                data.train,
                batches=self.recalibrate_batches,
                batch_size=min(len(data.train), (self.recipe or Recipe()).batch_size),
                seed=self.seed,
            )
        fsp = self._fsp(network, data)
        history: list[dict[str, Any]] = []
        seconds = 0.0
        if self.recipe is not None:
            result = train(
                network,
                data,
                self.recipe,
                self.task.threat,
                folder=folder / "checkpoints" if folder else None,
                seed=self.seed,
                on_epoch=_report,
            )
            network, seconds = result.model, result.seconds
            history = [dataclasses.asdict(record) for record in result.history]
        pictures = data.test if self.split == "test" else data.validation
        found = evaluate(
            network,
            pictures,
            self.attacks,
            threat=self.task.threat,
            limit=self.score_limit,
            seed=self.seed,
        )
        cost = measure_cost(network, data.input_shape)
        metrics = found.metrics()
        robust = [value for name, value in metrics.items() if name != "clean"]
        record: dict[str, Any] = {
            "metrics": {
                "default": min(robust),
                **metrics,
                "params": cost.params,
                "macs": cost.macs,
                "seconds": round(seconds + found.seconds, 3),
            },
            "pictures": found.n,
            "history": history,
        }
        if fsp is not None:
            record["fsp"] = fsp
        if self.eps_values:
            curve = eps_curve(
                network,
                pictures,
                self.eps_values,
                norm=self.task.threat.norm,
                limit=self.score_limit,
                seed=self.seed,
            )
            record["eps_curve"] = [list(point) for point in curve]
        if folder is not None:
            save_weights(network, folder / "weights.safetensors", {"phase": self.phase})
        return record

    def _fsp(self, network: nn.Module, data: DataSplits) -> dict[str, Any] | None:
        """FSP distances of the given weights, where they are asked for and the weights are any."""
        if self.fsp is None or (self.supernet is None and self.recipe is not None):
            return None
        from nni_robust.analysis.fsp_measure import fsp_record

        return fsp_record(
            network,
            data.validation,
            self.recipe or Recipe(),
            self.task.threat,
            pictures=self.fsp,
            seed=self.seed,
        )


def _report(record: EpochRecord) -> None:
    robust = record.val_robust if record.val_robust is not None else record.train_robust
    point = {"default": robust, "loss": record.loss}
    if record.val_clean is not None:
        point["clean"] = record.val_clean
    report_epoch({name: value for name, value in point.items() if value is not None})
