"""Gradient attacks: FGSM, PGD (also as CW) and MI-FGSM, untargeted or targeted, in L∞ and L2.

Papers
------
FGSM: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples" (1412.6572).
PGD: Madry et al., "Towards deep learning models resistant to adversarial attacks" (1706.06083).
MI-FGSM: Dong et al., "Boosting adversarial attacks with momentum" (1710.06081), algorithm 1.

One loop serves all: gradient in the picture, direction, step, projection. FGSM is one step of size
eps without a random start; MI-FGSM adds momentum. Without a random start the iterates equal those
of torchattacks 3.5.1. The loop of the RobNet repository differs in one thing: its random start may
leave [0, 1] until the first projection.

Written for speed: no gradient for weights, one leaf updated in place, ball and box computed once as
an interval for each pixel, and (`early_stop`) pictures leave the batch once they are misclassified.
`fold` and `channels_last` are faster still at other rounding, which the sign makes visible in
single pixels: they are for measuring, where the network as it is classifies what was found again.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from nni_robust import registry
from nni_robust.attacks._ascent import Ascent
from nni_robust.attacks._base import Attack, Precision, Victim
from nni_robust.attacks._graph import LEAST_STEPS, CudaRecorder, replay_steps
from nni_robust.attacks._losses import LOSSES, Loss
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.attacks._settings import (
    CWSettings,
    FGSMSettings,
    MIFGSMSettings,
    PGDSettings,
    fields_of,
)
from nni_robust.config import parse
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = [
    "CW",
    "FGSM",
    "MIFGSM",
    "PGD",
    "CWSettings",
    "FGSMSettings",
    "MIFGSMSettings",
    "PGDSettings",
]


#: From so many gradient steps on, "auto" folds: the first look at a network costs about one step.
_FOLD_STEPS = 3


@registry.attacks.register("pgd")
class PGD(Attack):
    """Projected gradient descent.

    Parameters
    ----------
    threat
        Ball to search.
    label
        Name in results; None derives it from the settings (``"pgd20"``, ``"pgd20x5"``).
    **settings
        Fields of :class:`PGDSettings`.

    Raises
    ------
    UserError
        On a setting that does not exist or is out of range.
    """

    name = "pgd"
    _default_step = 0.25  # in units of eps

    def __init__(self, threat: ThreatModel, *, label: str | None = None, **settings: Any) -> None:
        self.settings = self._parse(settings)
        super().__init__(threat, label or self._default_label())
        #: Length of a step in pixel units.
        self.step_size = self.settings.step_size or threat.eps * self._default_step
        self.targeted, self.bn_mode = self.settings.targeted, self.settings.bn_mode
        self.channels_last = self.settings.channels_last in (True, "auto")
        self.fold = self._folds()
        self.precision, self.compile = self.settings.precision, self.settings.compile
        self._start: Tensor | None = None

    def starting_from(self, start: Tensor) -> PGD:
        """The same attack on one batch, whose first run starts at given pictures.

        Parameters
        ----------
        start
            (N, C, H, W), one picture for each of the batch's; moved into the ball first. Further
            restarts are random as before.
        """
        warm = copy.copy(self)
        warm._start = start.detach()
        return warm

    @staticmethod
    def _parse(settings: dict[str, Any]) -> PGDSettings:
        return parse(PGDSettings, settings, "attack 'pgd'")

    def _default_label(self) -> str:
        s = self.settings
        loss = getattr(s.loss, "__name__", type(s.loss).__name__) if callable(s.loss) else s.loss
        return "".join(
            (
                f"{self.name}{s.steps}",
                f"x{s.restarts}" if s.restarts > 1 else "",
                f"-{loss}" if loss != "ce" else "",
                "-targeted" if s.targeted else "",
            )
        )

    def _folds(self) -> bool:
        s = self.settings
        if s.fold == "auto":
            return s.bn_mode == "eval" and s.steps * s.restarts >= _FOLD_STEPS
        return s.fold is True

    def with_early_exit(self) -> Attack:
        if self.settings.bn_mode == "train" or self.settings.steps == 1:
            return self
        settings = {**fields_of(self.settings), "early_stop": True}
        settings |= {k: "auto" for k in ("channels_last", "fold") if settings[k] is None}
        return type(self)(self.threat, label=self.label, **settings)

    def in_precision(self, precision: Precision) -> Attack:
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, precision=precision)
        other.precision = precision
        return other

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        best = self._ascend(victim, y, ball, noise, run=0)
        if self.settings.restarts == 1:
            return best
        loss, fooled = self._score(victim, best, y)
        for run in range(1, self.settings.restarts):
            left = fooled.logical_not().nonzero().flatten()
            if len(left) == 0:
                break
            new = self._ascend(victim, y[left], ball.select(left), noise.select(left), run)
            new_loss, new_fooled = self._score(victim, new, y[left])
            better = new_fooled | (new_loss > loss[left])
            chosen = left[better]
            best[chosen], loss[chosen] = new[better], new_loss[better]
            fooled[chosen] = new_fooled[better]
        return best

    def _ascend(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise, run: int) -> Tensor:
        """One run of the loop: the algorithm of the paper."""
        s = self.settings
        loss, step = self._loss(), -self.step_size if s.targeted else self.step_size
        # `run` numbers the streams of random numbers, four to a run.
        if run == 0 and self._start is not None:
            adv = ball.project_(torch.empty_like(ball.x).copy_(self._start))
        else:
            adv = ball.random_start(noise, 4 * run) if s.random_start else ball.x.clone()
        ascent = Ascent(
            victim,
            y,
            ball,
            adv,
            loss=loss,
            size=step,
            momentum=s.momentum,
            fooled=self._fooled if s.early_stop else None,
        )
        if self._replays(y.device):
            replay_steps(ascent, s.steps, CudaRecorder(y.device))
        else:
            for _ in range(s.steps):
                if not s.early_stop:
                    ascent.step()
                elif not ascent.shrinking_step():
                    break
        return ascent.finish()

    def _replays(self, device: torch.device) -> bool:
        """Whether steps are recorded as a CUDA graph.

        Raises
        ------
        UserError
            If that was asked for on another device.
        """
        wanted = self.settings.cuda_graph
        if wanted is True and device.type != "cuda":
            raise UserError(
                f"cuda_graph: True is not allowed for pictures on '{device}'; a CUDA device is, or "
                "cuda_graph: auto"
            )
        return bool(wanted) and device.type == "cuda" and self.settings.steps >= LEAST_STEPS

    def _loss(self) -> Loss:
        loss: Loss = self.settings.loss
        return loss if callable(loss) else LOSSES[self.settings.loss]

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        return (logits.argmax(1) == y) == self.settings.targeted

    @torch.no_grad()
    def _score(self, victim: Victim, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the attacker gained on each picture, and whether that is a success."""
        # Not the compiled network, of which this would need another form, without a gradient.
        ours = victim.reduced or victim.network is not victim.model
        logits = victim.in_full(adv) if ours else victim(adv)
        loss = self._loss()(logits, y)
        return (-loss if self.settings.targeted else loss), self._fooled(logits, y)


@registry.attacks.register("mi-fgsm")
class MIFGSM(PGD):
    """PGD with momentum; settings: :class:`MIFGSMSettings`."""

    name = "mi-fgsm"

    @staticmethod
    def _parse(settings: dict[str, Any]) -> PGDSettings:
        return parse(MIFGSMSettings, settings, "attack 'mi-fgsm'")


@registry.attacks.register("cw")
class CW(PGD):
    """PGD on the margin of Carlini and Wagner; settings: :class:`CWSettings`.

    "CW-40" of papers on adversarial training (TRADES, MART, RC-NAS) is 40 steps of it inside the
    ball; Carlini and Wagner's own search for the smallest L2 change is
    ``torchattacks:CW``, for that norm only.
    """

    name = "cw"

    @staticmethod
    def _parse(settings: dict[str, Any]) -> PGDSettings:
        return parse(CWSettings, settings, "attack 'cw'")

    def _default_label(self) -> str:
        return super()._default_label().replace("-margin", "")


@registry.attacks.register("fgsm")
class FGSM(PGD):
    """The fast gradient sign method: one step; settings: :class:`FGSMSettings`."""

    name = "fgsm"
    _default_step = 1.0

    @staticmethod
    def _parse(settings: dict[str, Any]) -> PGDSettings:
        return PGDSettings(**fields_of(parse(FGSMSettings, settings, "attack 'fgsm'")), steps=1)

    def _default_label(self) -> str:
        return super()._default_label().replace("fgsm1", "fgsm")
