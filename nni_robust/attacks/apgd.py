"""APGD: gradient ascent that chooses its own step sizes, on three losses, in L∞ and L2.

Paper
-----
Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks" (2003.01690): algorithm 1, the conditions of section 3.2, eq. 6 (DLR) and
eq. 7 (targeted DLR).

Where paper and the authors' code differ, the figures that everybody compares with come from the
code, and so does this: condition 1 holds at equality too (``<=``), and the first step after a
return to the best picture is compared with the loss before that return. Three things differ from
the code on purpose:

* Its first window compares the loss after step 1 with a number that was never written (0); here
  with the loss of the start.
* Checkpoints are the paper's ``ceil(p_j * steps)``. They are the code's for 100 steps, not for
  others.
* A picture leaves the batch at its first misclassified iterate; the code goes on, to no effect on
  robust accuracy.

Networks of few classes: the code's targeted loss needs 4. Here 3 classes use the scale of the
untargeted DLR, and 2 classes the plain margin, whose direction is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nni_robust import registry
from nni_robust.attacks._base import Attack, Victim
from nni_robust.attacks._losses import cross_entropy, dlr, loss_gradient
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.attacks._survivors import Survivors
from nni_robust.config import parse, strict
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["APGDCE", "APGDDLR", "APGDT", "APGDSettings", "APGDTSettings", "checkpoints"]

#: (N, K) logits, (N,) labels and (N,) classes to reach, to (N,) losses.
AimedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

_MOMENTUM = 0.75
_FIRST_STEP = 2.0  # in units of eps


@dataclasses.dataclass(frozen=True)
class APGDSettings:
    """Settings of APGD; the defaults are those of AutoAttack.

    Parameters
    ----------
    steps
        Gradient steps of a run.
    restarts
        Runs from different random starts; later ones attack only the pictures that still resist.
    rho
        A step size is halved if at most this share of the steps since the last checkpoint raised
        the loss; in (0, 1).
    eot
        Gradients that are averaged for a step, for networks with a random part.
    """

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    eot: int = 1

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for key in ("steps", "restarts", "eot"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number >= 1 is")
        if not 0 < self.rho < 1:
            raise UserError(f"rho: {self.rho!r} is not allowed; a number in (0, 1) is")


@dataclasses.dataclass(frozen=True)
class APGDTSettings(APGDSettings):
    """Settings of targeted APGD.

    Parameters
    ----------
    targets
        Classes to aim at, from the most likely wrong one on; at most all others are used.
    """

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets < 1:
            raise UserError(f"targets: {self.targets!r} is not allowed; a number >= 1 is")


def checkpoints(steps: int) -> list[int]:
    """Numbers of steps after which step sizes are reconsidered, rising (paper, section 3.2).

    The first is 22 % of all steps; each distance is 3 % of all steps shorter than the one before,
    but 6 % at least.
    """
    percent, distance, found = 22, 22, []
    while percent <= 100:
        found.append(-(-percent * steps // 100))  # whole numbers round up exactly
        distance = max(distance - 3, 6)
        percent += distance
    return sorted(set(found))


def targeted_dlr(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    """Lead of the class to reach over the label, in units that do not change with the scale."""
    lead = (logits.gather(1, aim.unsqueeze(1)) - logits.gather(1, y.unsqueeze(1))).squeeze(1)
    classes = logits.shape[1]
    if classes == 2:
        return lead
    ranked = logits.topk(min(classes, 4), dim=1).values
    return lead / (ranked[:, 0] - ranked[:, 2:].mean(1) + 1e-12)


@dataclasses.dataclass
class _State:
    """What APGD remembers of each picture; the first dimension of every field is the picture."""

    rows: Tensor  # places in the batch
    y: Tensor
    aim: Tensor
    adv: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    checked_loss: Tensor  # best_loss at the last checkpoint
    step: Tensor  # (N, 1, 1, 1), pixel units
    rises: Tensor  # steps since the last checkpoint that raised the loss
    halved: Tensor  # at the last checkpoint

    def select(self, keep: Tensor) -> _State:
        return _State(**{f.name: getattr(self, f.name)[keep] for f in dataclasses.fields(self)})


class APGD(Attack):
    """What the three have in common.

    Parameters
    ----------
    threat
        Ball to search.
    label
        Name in results; None is the attack's name, with what is not the default.
    **settings
        Fields of :class:`APGDSettings` (``apgd-t``: :class:`APGDTSettings`).

    Raises
    ------
    UserError
        On a setting that does not exist or is out of range.
    """

    name: str
    _kind: type[APGDSettings] = APGDSettings

    def __init__(self, threat: ThreatModel, *, label: str | None = None, **settings: Any) -> None:
        self.settings = parse(self._kind, settings, f"attack '{self.name}'")
        super().__init__(threat, label or self._default_label())

    def _default_label(self) -> str:
        s = self.settings
        steps = "" if s.steps == 100 else str(s.steps)
        return f"{self.name}{steps}{f'x{s.restarts}' if s.restarts > 1 else ''}"

    @staticmethod
    def _loss(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        left = Survivors(victim, y, ball, noise)
        for run in range(self.settings.restarts):
            if len(left):
                left.settle(*self._ascend(victim, left, left.y, run))
        return left.found

    def _ascend(
        self, victim: Victim, left: Survivors, aim: Tensor, run: int
    ) -> tuple[Tensor, Tensor]:
        """One run on what is left: pictures (first break, else best), and which are broken."""
        ball, y, s = left.ball, left.y, self.settings
        # `run` numbers the streams of random numbers, four to a run.
        adv = ball.random_start(left.noise, 4 * run)
        found, broken = adv.clone(), torch.zeros_like(y, dtype=torch.bool)
        loss, gradient, wrong = self._measure(victim, adv, y, aim)
        state = _State(
            rows=torch.arange(len(y), device=y.device),
            y=y,
            aim=aim,
            adv=adv,
            previous=adv,
            gradient=gradient,
            loss=loss,
            best=adv,
            best_gradient=gradient,
            best_loss=loss,
            checked_loss=loss,
            step=torch.full_like(adv[:, :1, :1, :1], _FIRST_STEP * ball.eps),
            rises=torch.zeros_like(loss),
            halved=torch.ones_like(wrong),  # so that condition 2 waits for the second checkpoint
        )
        last, marks = 0, checkpoints(s.steps)
        for number in range(s.steps + 1):
            if bool(wrong.any()):
                done = state.rows[wrong]
                found[done], broken[done] = state.adv[wrong], True
                keep = wrong.logical_not().nonzero().flatten()
                state, ball = state.select(keep), ball.select(keep)
            if number in marks:
                _reconsider(state, s.rho * (number - last))
                last = number
            if number == s.steps or len(state.rows) == 0:
                break
            _step(state, ball, _MOMENTUM if number else 1.0)
            loss, state.gradient, wrong = self._measure(victim, state.adv, state.y, state.aim)
            state.rises += loss > state.loss
            state.loss = loss
            _remember(state)
        found[state.rows] = state.best
        return found, broken

    def _measure(
        self, victim: Victim, adv: Tensor, y: Tensor, aim: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its gradient in the picture, and whether the picture is misclassified."""
        leaf, total = adv.detach().requires_grad_(), torch.zeros_like(adv)
        for _ in range(self.settings.eot):
            logits = victim(leaf)
            total += loss_gradient(
                logits, leaf, y, lambda z, label: self._loss(z, label, aim), half=victim.half
            )
        victim.watch(total)
        with torch.no_grad():
            return self._loss(logits, y, aim), total, logits.argmax(1) != y


def _step(state: _State, ball: Ball, share: float) -> None:
    """Algorithm 1: a step along the gradient, mixed with the step before."""
    ahead = ball.direction_(state.gradient.clone()).mul_(state.step).add_(state.adv)
    move = ball.project_(ahead).sub_(state.adv).mul_(share)
    move.add_(state.adv - state.previous, alpha=1 - share)
    state.previous, state.adv = state.adv, ball.project_(move.add_(state.adv))


def _remember(state: _State) -> None:
    """Keep the pictures of the highest loss."""
    better = state.loss > state.best_loss
    wide = better.view(-1, 1, 1, 1)
    state.best = torch.where(wide, state.adv, state.best)
    state.best_gradient = torch.where(wide, state.gradient, state.best_gradient)
    state.best_loss = torch.where(better, state.loss, state.best_loss)


def _reconsider(state: _State, enough: float) -> None:
    """At a checkpoint: halve the step and go back to the best picture where it does not work.

    Condition 1: too few steps raised the loss. Condition 2: the step was not halved at the last
    checkpoint, and the best loss has not grown since.
    """
    stale = state.halved.logical_not() & (state.checked_loss >= state.best_loss)
    state.halved = (state.rises <= enough) | stale
    wide = state.halved.view(-1, 1, 1, 1)
    state.step = torch.where(wide, state.step / 2, state.step)
    state.adv = torch.where(wide, state.best, state.adv)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)
    state.checked_loss, state.rises = state.best_loss, torch.zeros_like(state.rises)


@registry.attacks.register("apgd-ce")
class APGDCE(APGD):
    """APGD on the cross entropy; settings: :class:`APGDSettings`."""

    name = "apgd-ce"

    @staticmethod
    def _loss(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        return cross_entropy(logits, y)


@registry.attacks.register("apgd-dlr")
class APGDDLR(APGD):
    """APGD on the difference of logits ratio, for 3 classes or more; :class:`APGDSettings`."""

    name = "apgd-dlr"

    @staticmethod
    def _loss(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        return dlr(logits, y)


@registry.attacks.register("apgd-t")
class APGDT(APGD):
    """APGD on the targeted DLR, one class after the other; settings: :class:`APGDTSettings`.

    Any misclassification counts, not only that as the class aimed at.
    """

    name = "apgd-t"
    settings: APGDTSettings
    _kind = APGDTSettings

    @staticmethod
    def _loss(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        return targeted_dlr(logits, y, aim)

    def _default_label(self) -> str:
        targets = self.settings.targets
        return super()._default_label() + ("" if targets == 9 else f"-{targets}targets")

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        left, restarts = Survivors(victim, y, ball, noise), self.settings.restarts
        for rank in range(1, min(self.settings.targets, left.logits.shape[1] - 1) + 1):
            for restart in range(restarts):
                if len(left):
                    run = (rank - 1) * restarts + restart
                    left.settle(*self._ascend(victim, left, left.target(rank), run))
        return left.found
