"""What a training reports, and how it fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from nni_robust.training.recipe import Recipe

__all__ = [
    "EpochRecord",
    "TrainResult",
    "TrainingCollapsed",
    "TrainingDiverged",
    "impatient",
    "kept_epoch",
]


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch in plain numbers; ``dataclasses.asdict`` of it goes into JSON.

    Parameters
    ----------
    epoch
        Number of the epoch, from 1.
    loss
        Mean training loss.
    lr
        Learning rate of its last step.
    train_robust
        Accuracy on the (attacked) training pictures while they were trained on, in [0, 1]; without
        those that CutMix mixed, None where it mixed all.
    val_clean, val_robust
        Accuracy on the search-validation split after the epoch, in [0, 1]; None where not measured.
    seconds
        Wall time of the epoch with its validation.
    """

    epoch: int
    loss: float
    lr: float
    train_robust: float | None
    val_clean: float | None
    val_robust: float | None
    seconds: float

    def curve_point(self) -> dict[str, float]:
        """What is known of it, as NNI trials report curves: ``default`` is robust accuracy."""
        robust = self.train_robust if self.val_robust is None else self.val_robust
        point = {"default": robust, "loss": self.loss, "clean": self.val_clean}
        return {name: value for name, value in point.items() if value is not None}


def kept_epoch(history: Sequence[EpochRecord], recipe: Recipe) -> int:
    """Number (from 1) of the epoch whose weights a training keeps after these; 0 before the first.

    The last; or, with ``keep: best``, the first of those with the highest robust validation
    accuracy.
    """
    if recipe.keep == "last" or not history:
        return len(history)
    return max(history, key=lambda r: (r.val_robust or 0.0, -r.epoch)).epoch


def impatient(history: Sequence[EpochRecord], recipe: Recipe) -> bool:
    """Whether so many epochs were not better than the best that the training stops early."""
    if recipe.patience is None:
        return False
    since = max(kept_epoch(history, recipe), recipe.clean_epochs)
    return len(history) - since >= recipe.patience


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Parameters
    ----------
    model
        The network that was given, trained (with averaged weights if the recipe averages, those of
        the best epoch if it keeps them), in evaluation mode.
    history
        One record per epoch, also of epochs before an interruption.
    seconds
        Wall time of all epochs.
    kept_epoch
        Number of the epoch, from 1, whose weights the network has; 0 where there was none.
    """

    model: nn.Module
    history: list[EpochRecord]
    seconds: float
    kept_epoch: int


class TrainingDiverged(ArithmeticError):
    """Loss or weights became NaN or infinite; training on would be in vain.

    Parameters
    ----------
    what
        Where it was seen, such as ``"the loss"``.
    epoch
        From 1.
    step
        Step of the whole training, from 1.
    lr
        Learning rate of that step.
    """

    def __init__(self, what: str, epoch: int, step: int, lr: float) -> None:
        super().__init__(
            f"training diverged: {what} is NaN or infinite in epoch {epoch}, step {step}, "
            f"at learning rate {lr:g}; lower lr, or set warmup_epochs or grad_clip"
        )
        self.what, self.epoch, self.step, self.lr = what, epoch, step, lr

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return type(self), (self.what, self.epoch, self.step, self.lr)


class TrainingCollapsed(TrainingDiverged):
    """A training with one attack step learned to resist that step and nothing else.

    Parameters
    ----------
    epoch, step
        When it was seen, from 1.
    lr
        Learning rate of that step.
    one_step, many_steps
        Accuracy on training pictures under the training's attack and under PGD, in [0, 1].
    """

    def __init__(
        self, epoch: int, step: int, lr: float, one_step: float, many_steps: float
    ) -> None:
        ArithmeticError.__init__(
            self,
            f"training collapsed in epoch {epoch}: accuracy is {one_step:.0%} under the training's "
            f"one step and {many_steps:.0%} under PGD; lower attack.step_size or lr, stop before, "
            "or use loss madry with two or more attack.steps",
        )
        self.what, self.epoch, self.step, self.lr = "the training", epoch, step, lr
        self.one_step, self.many_steps = one_step, many_steps

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return type(self), (self.epoch, self.step, self.lr, self.one_step, self.many_steps)
