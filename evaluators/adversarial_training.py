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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nni
from torch import nn

from nni_robust.attacks import scoring_attacks
from nni_robust.config import as_mapping, parse
from nni_robust.data import DataSplits, load_task
from nni_robust.errors import UserError
from nni_robust.task import Task
from nni_robust.teacher import source_key
from nni_robust.training import parse_recipe
from nni_robust.trial import StoredEvaluator

from ._assessment import assess
from ._checks import check_combinations
from ._network import fresh, from_supernet, from_teacher, the_teacher

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
        self.recipe = None if train is None else parse_recipe(train, "evaluator.train")
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
        check_combinations(self)

    @property
    def needs_teacher(self) -> bool:
        """Whether its trials use the trained teacher: its weights, or its outputs."""
        taught = self.recipe is not None and self.recipe.needs_teacher
        return taught or self.inherit is not None or self.tutors is not None

    def variant(self, **changes: Any) -> AdversarialTraining:
        """A copy with some arguments changed, for another phase of the same run."""
        return AdversarialTraining(**{**self._arguments(), "store": self.store, **changes})

    def extra_repr(self) -> str:
        return f"task={self.task}, attacks={self.attacks}, phase={self.phase}"

    @property
    def inherits(self) -> bool:
        """Whether a network starts from the weights of another."""
        return self.supernet is not None or self.inherit is not None

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
        return assess(self, network, folder, data, teacher)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Assess a plain network outside of NNI, without a store; returns the record."""
        data = load_task(self.task, test=self.split == "test")
        return assess(self, model, None, data, self._load_teacher(data))

    def _load_teacher(self, data: DataSplits) -> nn.Module | None:
        """The teacher, where anything needs one."""
        if not self.needs_teacher:
            return None
        return the_teacher(self.task, self.store, self.teacher, data)
