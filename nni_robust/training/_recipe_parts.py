"""Sections of a recipe, and how single settings are checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from nni_robust.config import Ratio, strict
from nni_robust.errors import UserError, nearest

__all__ = ["Distillation", "TrainAttack", "number", "one_of"]


@dataclasses.dataclass(frozen=True)
class TrainAttack:
    """The PGD attack inside adversarial training.

    Parameters
    ----------
    steps
        Gradient steps.
    step_size
        Length of a step in pixel units, may be written ``"2/255"``; None is eps/4 (with replays,
        eps; with the loss ``"fast"``, 1.25 eps).
    random_start
        Start from a uniformly random point of the ball. Always so for TRADES, whose inner loss has
        no gradient at the clean picture.
    bn_mode
        Batch normalisation during the attack: ``"eval"`` uses the running statistics; ``"train"``
        those of the batch, as the seeds' repositories do (for comparisons with them). Running
        statistics do not change in either.
    fold
        Fold batch norms into the convolutions before them during the attack, where that is safe:
        faster, and the same network up to rounding, which the sign of a gradient makes visible in
        single pixels (docs/speed.md). ``"auto"`` does so for three steps or more of a fixed network
        with running statistics in float32, and not in supernets, whose path would have to be looked
        at in every batch.
    compile
        Run the network of the attack through ``torch.compile``: once, before the first batch, for
        seconds to minutes; needs a C++ compiler. For one network that is trained for long: not for
        supernets, whose every path would be compiled.
    cuda_graph
        Record one gradient step as a CUDA graph and replay it, for each batch anew, so supernets
        may; for 5 steps or more. True needs a GPU; ``"auto"`` takes the one that there is.
    """

    steps: int = 10
    step_size: Ratio | None = None
    random_start: bool = True
    bn_mode: Literal["eval", "train"] = "eval"
    fold: bool | Literal["auto"] = "auto"
    compile: bool = False
    cuda_graph: bool | Literal["auto"] = False

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        number("attack.steps", self.steps, 1, whole=True)
        if self.step_size is not None:
            number("attack.step_size", self.step_size, 0, above=True)
        one_of("attack.bn_mode", self.bn_mode, ("eval", "train"))
        if self.fold is True and self.bn_mode == "train":
            raise UserError(
                "attack.fold: true is not allowed with attack.bn_mode 'train', which changes the "
                "statistics; false or 'auto' is"
            )
        if self.compile and self.cuda_graph is True:
            raise UserError(
                "attack.cuda_graph: true is not allowed with attack.compile; one of the two is"
            )


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What the teacher's opinion counts.

    Parameters
    ----------
    weight
        Weight of the term; with the loss ``"ard"`` its alpha, at most 1.
    temperature
        Logits are divided by it before the softmax; the term is multiplied by its square, so that
        gradients keep their size.
    """

    weight: float = 0.5
    temperature: float = 4.0

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        number("distillation.weight", self.weight, 0, above=True)
        number("distillation.temperature", self.temperature, 0, above=True)


def number(key: str, value: Any, low: int, *, above: bool = False, whole: bool = False) -> None:
    """Refuse what is no number >= `low` (> with `above`), or no whole one where one is wanted."""
    kind = "whole number" if whole else "finite number"
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or value < low or (above and value == low):
        raise UserError(
            f"{key}: {value!r} is not allowed; a {kind} {'>' if above else '>='} {low} is"
        )


def one_of(key: str, value: Any, allowed: Any) -> None:
    """Refuse what is not among the allowed."""
    if value not in allowed:
        raise UserError(
            f"{key}: {value!r} is not allowed{nearest(str(value), allowed)} "
            f"(allowed: {', '.join(allowed)})"
        )
