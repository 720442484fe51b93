"""All settings of a training, checked before any work starts."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from nni_robust.attacks._graph import LEAST_STEPS
from nni_robust.config import strict
from nni_robust.data.augment import CUTMIX, check_augment
from nni_robust.errors import UserError
from nni_robust.training._recipe_parts import Distillation, TrainAttack, number, one_of
from nni_robust.training.schedules import SCHEDULES, Schedule

__all__ = ["Distillation", "Recipe", "TrainAttack"]

LOSSES = ("madry", "trades", "mart", "rslad", "ard", "fast", "clean")
#: Losses with a second term, and the weight that it has in their papers.
BETAS = {"trades": 6.0, "mart": 5.0}
#: Losses that need a teacher whatever else is said.
TAUGHT = ("rslad", "ard")
PRECISIONS = ("32-true", "bf16-mixed")
STRATEGIES = ("auto", "ddp", "ddp_spawn", "ddp_fork")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    epochs
        Times through the training pictures; 0 leaves the network as it is.
    batch_size
        Pictures per step, over all devices. A last batch that is not full is left out.
    loss
        ``"madry"``: cross entropy of attacked pictures; ``"trades"``; ``"mart"``; ``"fast"``: one
        step from a random start; ``"rslad"`` and ``"ard"``, which learn from a teacher;
        ``"clean"``: no attack. Formulas: :mod:`nni_robust.training.losses` and
        :mod:`nni_robust.training.distilled`.
    beta
        Weight of the second term of TRADES and MART; None is that of their authors, 6 and 5.
    distillation
        See :class:`Distillation`: the divergence from the teacher's prediction of the pictures
        trained on, beside any loss; None is off. With ``"ard"`` it holds alpha and the temperature
        of that loss, None being the 1 and 30 of its authors' code.
    label_smoothing
        Share of each label that all classes divide among them, in [0, 1): in cross entropies that
        are minimised, not in the attack.
    replays
        Steps on each batch. More than 1 is free adversarial training
        (:mod:`nni_robust.training.free`): each step's own backward pass moves the perturbation, so
        ``attack.steps`` must be 1, and batch normalisation is as in training whatever
        ``attack.bn_mode`` is. An epoch is still once through the data, of that many times the
        steps and the cost.
    clean_epochs
        Train the first so many epochs on clean pictures, one step on each batch (the author of
        RobNet advises that where adversarial training does not take off).
    optimizer
        ``"sgd"``.
    lr, momentum, nesterov, weight_decay
        Of SGD.
    no_decay_norm_bias
        Leave biases and the weights of normalisation layers out of weight decay (the RobNet
        repository does; most adversarial training decays everything).
    schedule, milestones, gamma, warmup_epochs, warmup_lr, min_lr
        See :mod:`nni_robust.training.schedules`. Milestones are epochs.
    schedule_unit
        The rate changes with every ``"step"`` or once per ``"epoch"``.
    grad_clip
        Largest Euclidean norm of the gradient of all weights; None does not clip.
    averaging
        Decay in (0, 1) of an exponential moving average of the weights and of the statistics of
        batch normalisation, such as 0.995; what is validated and returned is the average. None is
        off.
    precision
        ``"32-true"`` or ``"bf16-mixed"`` (Fabric's names), for training, its attack and validation.
    accelerator, devices, strategy
        Fabric's: ``"auto"`` takes a GPU where there is one. Several devices train by DDP:
        ``"ddp"``, ``"ddp_spawn"`` or ``"ddp_fork"``, see :func:`nni_robust.training.train`.
    channels_last
        Memory format of networks and pictures; faster for most convolutions.
    augment
        Names of augmentations; None is what suits the data set. ``"cutmix"`` mixes pictures and
        labels of a batch after the others, see :mod:`nni_robust.training.cutmix`.
    cutmix_probability
        Share of the batches that ``"cutmix"`` mixes.
    attack
        See :class:`TrainAttack`.
    validation_attack
        Attack for the robust accuracy after every epoch, such as ``"pgd10"``; None measures clean
        accuracy only.
    validation_limit
        Use only that many search-validation pictures for it; None is all.
    keep
        Whose weights the training ends with: ``"last"``, those of the last epoch; ``"best"``, those
        of the epoch with the highest robust accuracy on the search-validation pictures (of equals
        the first), against robust overfitting. The default is ``"last"``: so the published recipes
        mean it, and a candidate scored on the same pictures is not chosen on them before.
    patience
        With ``"best"``: stop after so many epochs in a row (clean ones do not count) without a
        better one; None trains to the end.
    checkpoint_steps
        Also write a checkpoint every so many steps; None is once per epoch.

    Raises
    ------
    UserError
        If a value is impossible.
    """

    epochs: int = 100
    batch_size: int = 128
    loss: str = "madry"
    beta: float | None = None
    distillation: Distillation | None = None
    label_smoothing: float = 0.0
    replays: int = 1
    clean_epochs: int = 0
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    no_decay_norm_bias: bool = False
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    schedule_unit: Literal["step", "epoch"] = "step"
    grad_clip: float | None = None
    averaging: float | None = None
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | Literal["auto"] = 1
    strategy: str = "auto"
    channels_last: bool = True
    augment: tuple[str, ...] | None = None
    cutmix_probability: float = 0.5
    attack: TrainAttack = dataclasses.field(default_factory=TrainAttack)
    validation_attack: str | dict[str, Any] | None = "pgd10"
    validation_limit: int | None = None
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    checkpoint_steps: int | None = None

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        number("epochs", self.epochs, 0, whole=True)
        number("batch_size", self.batch_size, 1, whole=True)
        number("replays", self.replays, 1, whole=True)
        number("clean_epochs", self.clean_epochs, 0, whole=True)
        for key in ("validation_limit", "patience", "checkpoint_steps"):
            if getattr(self, key) is not None:
                number(key, getattr(self, key), 1, whole=True)
        if self.beta is not None:
            number("beta", self.beta, 0)
        for key in ("weight_decay", "warmup_epochs", "warmup_lr", "min_lr", "momentum"):
            number(key, getattr(self, key), 0)
        for key in ("lr", "gamma"):
            number(key, getattr(self, key), 0, above=True)
        if self.grad_clip is not None:
            number("grad_clip", self.grad_clip, 0, above=True)
        if self.averaging is not None:
            number("averaging", self.averaging, 0, above=True)
            if self.averaging >= 1:
                raise UserError(f"averaging: {self.averaging!r} is not allowed; a decay < 1 is")
        for key in ("label_smoothing", "cutmix_probability"):
            number(key, getattr(self, key), 0)
            if getattr(self, key) > 1 or self.label_smoothing == 1:
                raise UserError(
                    f"{key}: {getattr(self, key)!r} is not allowed; a share "
                    f"{'< 1' if key == 'label_smoothing' else '<= 1'} is"
                )
        if self.devices != "auto":
            number("devices", self.devices, 1, whole=True)
        one_of("loss", self.loss, LOSSES)
        one_of("optimizer", self.optimizer, ("sgd",))
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("schedule_unit", self.schedule_unit, ("step", "epoch"))
        one_of("precision", self.precision, PRECISIONS)
        one_of("strategy", self.strategy, STRATEGIES)
        one_of("keep", self.keep, ("last", "best"))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.augment is not None:
            check_augment(self.augment, mixing=True)
        if self.momentum >= 1:
            raise UserError(f"momentum: {self.momentum!r} is not allowed; a number < 1 is")
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov: true is not allowed with momentum 0")
        if self.warmup_epochs >= self.epochs > 0:
            raise UserError(
                f"warmup_epochs: {self.warmup_epochs!r} is not allowed; less than epochs "
                f"({self.epochs}) is"
            )
        if self.min_lr > self.lr:
            raise UserError(f"min_lr: {self.min_lr!r} is not allowed; at most lr ({self.lr!r}) is")
        if self.schedule == "step" and self.epochs > 0:
            inside = all(0 < m < self.epochs for m in self.milestones)
            if (
                not self.milestones
                or not inside
                or list(self.milestones) != sorted(self.milestones)
            ):
                raise UserError(
                    f"milestones: {list(self.milestones)} is not allowed; schedule 'step' needs "
                    f"rising epochs between 0 and {self.epochs}"
                )
        if self.clean_epochs > 0 and (self.loss == "clean" or self.clean_epochs >= self.epochs > 0):
            raise UserError(
                f"clean_epochs: {self.clean_epochs} is not allowed; less than epochs "
                f"({self.epochs}) is, with an adversarial loss"
            )
        if self.replays > 1 and self.loss != "madry":
            raise UserError(
                f"replays: {self.replays} is not allowed with loss '{self.loss}'; only 'madry' "
                "has replays"
            )
        if self.replays > 1 and self.attack.steps != 1:
            raise UserError(
                f"attack.steps: {self.attack.steps} is not allowed with replays; 1 is, for each "
                "replay is one step"
            )
        if self.replays > 1 and self.attack.compile:
            raise UserError(
                "attack.compile: true is not allowed with replays, which attack by the training's "
                "own backward pass"
            )
        if self.attack.cuda_graph is True and self.attack.steps < LEAST_STEPS:
            raise UserError(
                f"attack.cuda_graph: true is not allowed with attack.steps {self.attack.steps}; "
                f"{LEAST_STEPS} or more are worth a record (and replays have none)"
            )
        if self.keep == "best" and self.validation_attack is None:
            raise UserError(
                "keep: 'best' is not allowed without validation_attack, which measures it"
            )
        if self.patience is not None and self.keep != "best":
            raise UserError("patience is not allowed with keep: 'last'; it is with keep: 'best'")
        self._check_loss()

    def _check_loss(self) -> None:
        if self.loss == "fast":
            if self.attack.steps != 1:
                raise UserError(
                    f"attack.steps: {self.attack.steps} is not allowed with loss 'fast'; 1 is"
                )
            if not self.attack.random_start:
                raise UserError("attack.random_start: false is not allowed with loss 'fast'")
        if self.loss == "mart" and (self.mixes or self.label_smoothing):
            what = "augment: 'cutmix'" if self.mixes else "label_smoothing"
            raise UserError(
                f"{what} is not allowed with loss 'mart', whose terms need one certain label"
            )
        if self.loss == "rslad" and self.label_smoothing:
            raise UserError("label_smoothing is not allowed with loss 'rslad'; it uses no labels")
        if self.loss == "ard" and self.ard_weights[0] > 1:
            raise UserError(
                f"distillation.weight: {self.ard_weights[0]!r} is not allowed with loss 'ard'; "
                "at most 1 is"
            )
        if self.distillation is not None and self.replays > 1:
            raise UserError("distillation is not allowed with replays")
        if self.loss == "trades" and not self.attack.random_start:
            raise UserError(
                "attack.random_start: false is not allowed with loss 'trades': its inner loss has "
                "no gradient at the clean picture"
            )

    @property
    def mixes(self) -> bool:
        """Whether some batches are mixed."""
        return self.augment is not None and CUTMIX in self.augment

    @property
    def needs_teacher(self) -> bool:
        """Whether there is nothing to train by without a teacher."""
        return self.loss in TAUGHT or self.distillation is not None

    @property
    def weight_of_second_term(self) -> float:
        """`beta`, or what the authors of the loss have."""
        return BETAS.get(self.loss, 0.0) if self.beta is None else self.beta

    @property
    def ard_weights(self) -> tuple[float, float]:
        """Alpha and temperature of ARD."""
        term = self.distillation
        return (1.0, 30.0) if term is None else (term.weight, term.temperature)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Rate of step `step` (from 0) of the whole training."""
        epoch = step / steps_per_epoch
        if self.schedule_unit == "epoch":
            epoch = step // steps_per_epoch
        return self._schedule()(epoch)

    def _schedule(self) -> Schedule:
        return Schedule(
            self.schedule,
            lr=self.lr,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            warmup_lr=self.warmup_lr,
            min_lr=self.min_lr,
            milestones=self.milestones,
            gamma=self.gamma,
        )
