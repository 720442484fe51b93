"""Train one architecture adversarially, attack it, report clean and robust accuracy.

The evaluation of a candidate as in RobNet (CVPR 2020, section 3.2-3.3): inherit the supernet's
weights where there is one, train a few epochs on adversarial examples, attack on the
search-validation split. With no supernet it is plain adversarial training from scratch. The authors
selected on the test set (robnet spec, j.7); here the search only ever sees the validation split.

A candidate may also inherit the weights of a teacher that it is a smaller form of, learn from the
teacher's outputs (``train.distillation``, ``train.loss: rslad``) or maps (`tutors`), and be scored
over a spectrum of strengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nni
from torch import nn

from nni_robust.attacks import scoring_attacks
from nni_robust.config import as_mapping, parse
from nni_robust.cost import measure_cost
from nni_robust.data import DataSplits, Images, load_task
from nni_robust.errors import UserError
from nni_robust.reliability import check_training
from nni_robust.task import Task
from nni_robust.teacher import source_key
from nni_robust.training import Recipe, recalibrate_bn, train
from nni_robust.training.weights import save_weights
from nni_robust.trial import CurveReporter, StoredEvaluator, default_device

from ._curves import EXAMPLES, measure_curves, save_examples
from ._network import fresh, from_supernet, from_teacher, the_teacher
from ._scoring import Score, attack_score, spectrum_score

__all__ = ["AdversarialTraining"]

_RECIPE_DEFAULTS: Mapping[str, Any] = {}


@nni.trace
class AdversarialTraining(StoredEvaluator):
    """Evaluate an architecture by adversarial training and attacks.

    The final metric is a flat dict: ``default`` (the lowest accuracy under the attacks, what
    strategies maximise), ``clean``, one key per attack such as ``pgd20@8/255``, ``params``,
    ``macs``, ``seconds``. Accuracies lie in [0, 1]. The curve over epochs goes out as intermediate
    metrics. With `strengths` there is one key per strength, ``average`` (which is ``default``) and
    ``auc``.

    The network has as many outputs as the task has classes, whatever the space was made for.

    Parameters
    ----------
    task
        Settings of a :class:`nni_robust.task.Task`: data, threat, split.
    train
        Settings of a :class:`nni_robust.training.Recipe`; None does not train, only attacks.
    attacks
        Attacks that score the network, such as ``["fgsm", "pgd20"]``; ``["clean"]``: none, clean
        accuracy decides. None is the task's attack, or ``pgd20`` where it has none.
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
    steps
        Numbers of steps of an accuracy-versus-steps curve of PGD; empty for none.
    corruptions
        Common corruptions to measure accuracy under, such as ``["standard"]``; empty for none.
    examples
        Attacked pictures to keep for the report, by the last of the attacks; 0 for none.
    fsp
        Measure the FSP distance of each cell, and the accuracies that go with it, on that many
        validation pictures; None is off. It is measured on the weights that a network inherits,
        before they are fine-tuned (RobNet, section 3.5), with the attack of the training; a network
        that is trained from scratch has no such weights, and is not measured.
    teacher
        Key of a :class:`nni_robust.teacher.TeacherTraining` in the store whose weights the task's
        teacher has; None: the teacher's own. It is loaded only where something needs it.
    inherit
        ``"teacher"``: a candidate starts from the teacher's weights, cut to size by the space.
    inherit_options
        Options of the space's ``inherit``, such as ``{"channels": "magnitude", "blocks": "first"}``
        of wide residual networks.
    tutors
        Settings of a :class:`nni_robust.distillation.CrossLayerTerm`, which adds the distance
        between maps of the network and of the teacher to the loss.
    strengths
        Score over these eps values (pixel units, also ``"8/255"``) by the first of the attacks, see
        :func:`nni_robust.spectrum.evaluate_spectrum`; further attacks are at the threat's eps, and
        do not decide. None scores at the threat's eps.
    strength_weights
        Weight of each of them in the average; None weighs all above 0 equally.

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
        attacks: Sequence[Any] | None = None,
        score_limit: int | None = None,
        recalibrate_batches: int = 8,
        seed: int = 0,
        store: str | None = None,
        supernet: str | None = None,
        phase: str = "candidate",
        split: str = "validation",
        eps_values: Sequence[float] = (),
        steps: Sequence[int] = (),
        corruptions: Sequence[str] = (),
        examples: int = 0,
        fsp: int | None = None,
        teacher: str | None = None,
        inherit: str | None = None,
        inherit_options: Mapping[str, Any] | None = None,
        tutors: Mapping[str, Any] | None = None,
        strengths: Sequence[Any] | None = None,
        strength_weights: Sequence[float] | None = None,
    ) -> None:
        self.task = parse(Task, task, "task")
        self.recipe = None if train is None else parse(Recipe, train, "evaluator.train")
        self._given_attacks = None if attacks is None else list(attacks)
        self.attacks = scoring_attacks(attacks, self.task.attack, self.task.threat)
        self.attacked = bool(self.attacks)
        if split not in ("validation", "test"):
            raise UserError(f"evaluator.split: {split!r} is not allowed; allowed: validation, test")
        if fsp is not None and (isinstance(fsp, bool) or not isinstance(fsp, int) or fsp < 1):
            raise UserError(f"evaluator.fsp: {fsp!r} is not allowed; a whole number >= 1 is")
        self.fsp = fsp
        self.score_limit, self.recalibrate_batches = score_limit, recalibrate_batches
        self.seed, self.store, self.supernet = seed, store, supernet
        self.phase, self.split, self.eps_values = phase, split, list(eps_values)
        self.steps, self.examples, self.corruptions = list(steps), examples, list(corruptions)
        self.teacher, self.inherit = teacher, inherit
        self.inherit_options = dict(inherit_options or {})
        self.tutors = None if tutors is None else dict(tutors)
        self.strengths = None if strengths is None else list(strengths)
        self.strength_weights = None if strength_weights is None else list(strength_weights)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.inherit not in (None, "teacher"):
            raise UserError(
                f"evaluator.inherit: {self.inherit!r} is not allowed; allowed: teacher (or nothing)"
            )
        if self.inherit is not None and self.supernet is not None:
            raise UserError("evaluator.inherit: 'teacher' is not allowed with a supernet's weights")
        if self.inherit_options and self.inherit is None:
            raise UserError("evaluator.inherit_options is not allowed without inherit: teacher")
        if self.tutors is not None and self.recipe is None:
            raise UserError("evaluator.tutors is not allowed without training (train is null)")
        if self.needs_teacher and self.task.teacher is None:
            what = "inherit" if self.inherit else "tutors" if self.tutors is not None else "train"
            raise UserError(f"task.teacher is missing; evaluator.{what} needs a teacher")
        if self.tutors is not None:
            self._term()
        if self.strength_weights is not None and self.strengths is None:
            raise UserError("evaluator.strength_weights is not allowed without strengths")
        if self.strengths is not None and not (self.strengths and self.attacks):
            raise UserError("evaluator.strengths: at least one strength and an attack are needed")

    @property
    def needs_teacher(self) -> bool:
        """Whether its trials use the trained teacher: its weights, or its outputs."""
        taught = self.recipe is not None and self.recipe.needs_teacher
        return taught or self.inherit is not None or self.tutors is not None

    def _term(self) -> Any:
        """What the tutors add to the loss; None without any."""
        if self.tutors is None:
            return None
        from nni_robust.distillation import CrossLayerTerm

        try:
            return CrossLayerTerm(**self.tutors)
        except TypeError as e:
            raise UserError(f"evaluator.tutors: {e}") from e

    def variant(self, **changes: Any) -> AdversarialTraining:
        """A copy with some arguments changed, for another phase of the same run."""
        return AdversarialTraining(**{**self._arguments(), "store": self.store, **changes})

    def extra_repr(self) -> str:
        return f"task={self.task}, attacks={self.attacks}, phase={self.phase}"

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        settings = {**self._arguments(), "attacks": self.attacks}
        if self.needs_teacher and self.teacher is None and self.task.teacher is not None:
            settings["teacher"] = source_key(self.task.teacher)
        return settings

    def _arguments(self) -> dict[str, Any]:
        return {
            "task": as_mapping(self.task),
            "train": None if self.recipe is None else as_mapping(self.recipe),
            "attacks": self._given_attacks,
            "score_limit": self.score_limit,
            "recalibrate_batches": self.recalibrate_batches,
            "seed": self.seed,
            "supernet": self.supernet,
            "phase": self.phase,
            "split": self.split,
            "eps_values": self.eps_values,
            # What candidates have none of stays out: their keys are those of earlier versions.
            **({"steps": self.steps} if self.steps else {}),
            **({"corruptions": self.corruptions} if self.corruptions else {}),
            **({"examples": self.examples} if self.examples else {}),
            "fsp": self.fsp,
            "teacher": self.teacher,
            "inherit": self.inherit,
            "inherit_options": self.inherit_options or None,
            "tutors": self.tutors,
            "strengths": self.strengths,
            "strength_weights": self.strength_weights,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Build (or inherit), train, attack."""
        import torch

        data = load_task(self.task, test=self.split == "test")
        teacher = self._load_teacher(data)
        torch.manual_seed(self.seed)  # after the teacher, whose making draws numbers too
        if self.supernet is not None:
            network = from_supernet(model, self.store, self.supernet)
        elif self.inherit is not None:
            assert teacher is not None
            network = from_teacher(model, data.num_classes, teacher, self.inherit_options)
        else:
            network = fresh(model, data.num_classes)
        return self._assess(network, folder, data, teacher)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Assess a plain network outside of NNI, without a store; returns the record."""
        data = load_task(self.task, test=self.split == "test")
        return self._assess(model, None, data, self._load_teacher(data))

    def _load_teacher(self, data: DataSplits) -> nn.Module | None:
        """The teacher, where anything needs one."""
        if not self.needs_teacher:
            return None
        return the_teacher(self.task, self.store, self.teacher, data)

    def _assess(
        self,
        network: nn.Module,
        folder: Path | None,
        data: DataSplits,
        teacher: nn.Module | None,
    ) -> dict[str, Any]:
        network = network.to(default_device())
        if self._inherits and self.recalibrate_batches:
            recalibrate_bn(
                network,
                data.train,
                batches=self.recalibrate_batches,
                batch_size=min(len(data.train), (self.recipe or Recipe()).batch_size),
                seed=self.seed,
            )
        fsp = self._fsp(network, data)
        history: list[dict[str, Any]] = []
        kept, seconds = 0, 0.0
        if self.recipe is not None:
            result = train(
                network,
                data,
                self.recipe,
                self.task.threat,
                folder=folder / "checkpoints" if folder else None,
                seed=self.seed,
                on_epoch=CurveReporter(),
                teacher=None if teacher is None else teacher.to(default_device()),
                wrap=self._term(),
                logs=self.logs(folder),
            )
            network, kept, seconds = result.model, result.kept_epoch, result.seconds
            history = [dataclasses.asdict(record) for record in result.history]
        pictures = data.test if self.split == "test" else data.validation
        score = self._score(network, pictures)
        collapse = check_training(history[:kept], data.num_classes)
        cost = measure_cost(network, data.input_shape)
        curves, checked = measure_curves(
            network,
            pictures,
            self.task.threat,
            eps_values=self.eps_values,
            steps=self.steps,
            corruptions=self.corruptions,
            limit=self.score_limit,
            seed=self.seed,
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
            save_weights(network, folder / "weights.safetensors", {"phase": self.phase})
            if self.examples and self.attacks:
                save_examples(
                    network,
                    pictures,
                    self.attacks[-1],
                    self.task.threat,
                    folder / EXAMPLES,
                    number=self.examples,
                    seed=self.seed,
                )
        return record

    @property
    def _inherits(self) -> bool:
        return self.supernet is not None or self.inherit is not None

    def _score(self, network: nn.Module, pictures: Images) -> Score:
        """What the trained network is worth."""
        if self.strengths is None:
            return attack_score(
                network,
                pictures,
                self.attacks,
                self.task.threat,
                limit=self.score_limit,
                seed=self.seed,
            )
        return spectrum_score(
            network,
            pictures,
            self.strengths,
            self.strength_weights,
            self.attacks,
            self.task.threat,
            limit=self.score_limit,
            seed=self.seed,
        )

    def _fsp(self, network: nn.Module, data: DataSplits) -> dict[str, Any] | None:
        """FSP distances of the given weights, where they are asked for and the weights are any."""
        if self.fsp is None or (not self._inherits and self.recipe is not None):
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
