"""Settings of the search for tutors and architecture, checked before any work starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from nni_robust.config import Quantity, strict
from nni_robust.distillation.maps import MapConfig
from nni_robust.distillation.tutors import Reduction
from nni_robust.errors import UserError
from nni_robust.training.recipe import Recipe

__all__ = ["CostTerm", "SearchSettings"]

#: Losses of a recipe that the search can train with; the teacher comes in by its own terms.
_LOSSES = ("clean", "madry", "trades")


@dataclasses.dataclass(frozen=True)
class CostTerm:
    """How the cost of the expected network enters the loss of the architecture.

    Parameters
    ----------
    kind
        ``"hinge"``: add weight * max(0, cost / target - 1); ``"additive"``: add weight * cost /
        target; ``"fbnet"``: multiply the loss with alpha * log(cost^beta), as RNAS-CL does (Wu et
        al., "FBNet", 1812.03443), which with its narrow ranges ends near the cheapest network;
        ``"none"``.
    metric
        ``"macs"``, ``"params"``, or ``"latency"``: milliseconds for a batch, timed for each value
        of each choice with all others at their first, and added up.
    target
        Cost that is aimed at; None is that of the task's budget, else that of the average network
        (all values of a choice equally likely).
    weight
        Of ``hinge`` and ``additive``.
    alpha, beta
        Of ``fbnet``; the authors' values.
    """

    kind: Literal["hinge", "additive", "fbnet", "none"] = "hinge"
    metric: Literal["macs", "params", "latency"] = "macs"
    target: Quantity | None = None
    weight: float = 1.0
    alpha: float = 0.2
    beta: float = 0.5

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for key in ("target", "weight", "alpha", "beta"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"cost.{key}: {value!r} is not allowed; a number > 0 is")


#: Where the search's recipe differs from a recipe's own defaults.
_WEIGHTS: dict[str, Any] = {
    "loss": "clean",
    "lr": 0.025,
    "weight_decay": 2e-4,
    "validation_attack": None,
}


def _recipe(given: Any) -> Any:
    return {**_WEIGHTS, **given} if isinstance(given, Mapping) else given


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How tutors and architecture are searched.

    The authors' values are 100 epochs of 128 pictures and, for the logits, Adam with a rate of 0.1;
    their rate of the weights is 0.004.

    Parameters
    ----------
    weights
        Recipe of the shared weights: epochs, pictures per step, rate and its schedule, loss
        (``clean``, ``madry``, ``trades``; the attack moves pictures for the logits too).
    share
        Share of the training pictures that only the logits learn from; the weights learn from the
        others only.
    logits_lr
        Rate of Adam for all logits; it falls like a cosine to 0.
    choice_decay
        Weight decay of the choices' logits. The tutors' do not decay.
    gamma
        Weight of the distance between maps.
    kl
        Weight of KL(teacher || student), at temperature 1.
    tau, tau_decay
        Temperature ``tau * exp(-tau_decay * epoch / epochs)`` of choices and tutors.
    reduction, debias
        See :class:`nni_robust.distillation.TutorMatrix`.
    maps
        See :class:`nni_robust.distillation.MapConfig`.
    cost
        See :class:`CostTerm`.
    taps, teacher_taps
        See :func:`nni_robust.distillation.find_taps`.

    Raises
    ------
    UserError
        If a value is impossible.
    """

    weights: Annotated[Recipe, BeforeValidator(_recipe)] = dataclasses.field(
        default_factory=lambda: Recipe(**_WEIGHTS)
    )
    share: float = 0.2
    logits_lr: float = 0.1
    choice_decay: float = 1e-4
    gamma: float = 30.0
    kl: float = 1.0
    tau: float = 5.0
    tau_decay: float = 4.5
    reduction: Reduction = "mean_layers"
    debias: bool = False
    maps: MapConfig = dataclasses.field(default_factory=MapConfig)
    cost: CostTerm = dataclasses.field(default_factory=CostTerm)
    taps: str | list[str] = "auto"
    teacher_taps: str | list[str] = "auto"

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"share: {self.share!r} is not allowed; a number in (0, 1) is")
        for key in ("logits_lr", "tau"):
            if not getattr(self, key) > 0:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number > 0 is")
        for key in ("choice_decay", "gamma", "kl", "tau_decay"):
            if not getattr(self, key) >= 0:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number >= 0 is")
        if self.weights.loss not in _LOSSES:
            raise UserError(
                f"weights.loss: {self.weights.loss!r} is not allowed in the search (allowed: "
                f"{', '.join(_LOSSES)}); kl and gamma bring in the teacher"
            )
        if self.weights.epochs < 1:
            raise UserError("weights.epochs: at least 1 is needed")
        if self.weights.replays > 1 or self.weights.averaging is not None:
            raise UserError("weights: replays and averaging are not allowed in the search")
