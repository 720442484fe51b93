"""Settings of `RLCompressor`, and the reward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nni_robust.config import strict
from nni_robust.errors import UserError, nearest

__all__ = ["FAILED", "Learning", "Rewards", "Score", "one_of", "rewards_of"]

#: Reward of a network whose trial failed, and the lowest that any other gets. There is no highest:
#: a bound makes good networks equal, and nothing is learned from the best ones any more.
FAILED = -1.0


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a policy learns.

    Parameters
    ----------
    algorithm
        ``ppo``, ``vpg`` or ``a2c``.
    lr
        Step size of Adam.
    entropy
        Weight of the entropy bonus in the first and in the last update, linear between them.
    baseline_decay
        Of the moving average of a task's rewards that advantages are taken against.
    grad_clip
        Largest norm of the gradient.
    epochs
        Steps per update of ``ppo``.
    clip
        Of ``ppo``: probabilities count as changed by at most that share.
    imitation
        Weight of the log-probability of the best networks of the task so far; 0 leaves it out.
    elites
        How many of them.

    Raises
    ------
    UserError
        On a value out of range.
    """

    algorithm: Literal["vpg", "ppo", "a2c"] = "vpg"
    lr: float = 0.006
    entropy: tuple[float, float] = (0.03, 0.03)
    baseline_decay: float = 0.9
    grad_clip: float = 1.0
    epochs: int = 4
    clip: float = 0.2
    imitation: float = 0.5
    elites: int = 5

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        positive = {"lr": self.lr, "grad_clip": self.grad_clip, "clip": self.clip}
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"strategy.{name}: {value!r} is not allowed; a number > 0 is")
        at_least_one = {"epochs": self.epochs, "elites": self.elites}
        for name, value in at_least_one.items():
            if value < 1:
                raise UserError(f"strategy.{name}: {value!r} is not allowed; at least 1 is")
        not_negative = {"imitation": self.imitation, "entropy": min(self.entropy)}
        for name, value in not_negative.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"strategy.{name}: {value!r} is not allowed; a number >= 0 is")
        if not 0 <= self.baseline_decay < 1:
            raise UserError(
                f"strategy.baseline_decay: {self.baseline_decay!r} is not allowed; a number in "
                "[0, 1) is"
            )


@dataclasses.dataclass(frozen=True)
class Rewards:
    """What a network is rewarded for.

    Parameters
    ----------
    reward
        ``budgeted``: ten times the gain in accuracy over the teacher, and a bonus for compression.
        ``n2n``: the product of the relative accuracy and the compression (N2N learning, Ashok et
        al., ICLR 2018).
    lam
        Weight of the robust accuracy against the clean one; None is 0.8 where there is a teacher or
        a budget, else 1. Tasks without an attack have only one accuracy.
    kappa
        Weight of the compression in ``budgeted``; None is 0.3 where there is a teacher or a budget,
        else 0.
    compression
        What is compressed: ``macs`` or ``params``.

    Raises
    ------
    UserError
        On a value out of range.
    """

    reward: Literal["budgeted", "n2n"] = "budgeted"
    lam: float | None = None
    kappa: float | None = None
    compression: Literal["macs", "params"] = "macs"

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if self.lam is not None and not 0 <= self.lam <= 1:
            raise UserError(f"strategy.lam: {self.lam!r} is not allowed; a number in [0, 1] is")
        if self.kappa is not None and not (math.isfinite(self.kappa) and self.kappa >= 0):
            raise UserError(f"strategy.kappa: {self.kappa!r} is not allowed; a number >= 0 is")


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1], robust and clean, and the cost that is compressed (None: unknown)."""

    robust: float
    clean: float
    cost: float | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, Any], clean_task: bool, cost: float | None) -> Score:
        """From a trial's metrics; a task without an attack has one accuracy."""
        robust = float(metrics["default"])
        return cls(robust, robust if clean_task else float(metrics.get("clean", robust)), cost)


def rewards_of(
    score: Score, reference: Score, settings: Rewards, *, compresses: bool
) -> dict[str, float]:
    """Both rewards of a network; ``settings.reward`` says which of them counts.

    With C = 1 - cost/teacher's cost and R_c = C(2 - C):
    budgeted R = 10 [lam dA_robust + (1 - lam) dA_clean] + kappa R_c, at least -1;
    n2n R = R_c [lam A_robust + (1 - lam) A_clean] / [the same of the teacher].

    Parameters
    ----------
    score
        Of the network.
    reference
        Of the teacher under the same protocol.
    settings
        Weights.
    compresses
        Whether the task names a teacher or a budget.
    """
    lam = settings.lam if settings.lam is not None else (0.8 if compresses else 1.0)
    kappa = settings.kappa if settings.kappa is not None else (0.3 if compresses else 0.0)
    compressed = 0.0
    if score.cost is not None and reference.cost:
        share = 1 - score.cost / reference.cost
        compressed = share * (2 - share)
    gain = lam * (score.robust - reference.robust) + (1 - lam) * (score.clean - reference.clean)
    accuracy = lam * score.robust + (1 - lam) * score.clean
    least = lam * reference.robust + (1 - lam) * reference.clean
    return {
        "budgeted": max(FAILED, 10 * gain + kappa * compressed),
        "n2n": accuracy / max(least, 1e-6) * compressed,
    }


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a setting that is none of the allowed values."""
    if value not in allowed:
        known = [str(option) for option in allowed if option is not None]
        raise UserError(
            f"strategy.{name}: {value!r} is not allowed{nearest(str(value), known)} (allowed: "
            f"{', '.join(known)})"
        )
