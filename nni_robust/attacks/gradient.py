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
import math
from typing import Any, Literal

import torch
from torch import Tensor

from nni_robust import registry
from nni_robust.attacks._base import Attack, Victim
from nni_robust.attacks._losses import LOSSES, Loss, loss_gradient
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.config import Ratio, parse, strict
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


@dataclasses.dataclass(frozen=True)
class FGSMSettings:
    """Settings of FGSM, and those that all gradient attacks share.

    Parameters
    ----------
    step_size
        Length of a step in pixel units, may be written ``"2/255"``. None is eps for FGSM and eps/4
        for the others.
    random_start
        Start at a random point of the ball; with FGSM this is FGSM-RS (2001.03994).
    targeted
        The labels given are the classes to reach.
    loss
        ``"ce"``, ``"dlr"``, ``"margin"``, or a function from (N, K) logits and (N,) labels to (N,)
        losses.
    bn_mode
        ``"eval"``, or ``"train"``: attack with the batch's own statistics, like the seeds did.
    channels_last
        Compute in channels-last memory, which is faster for most convolutions on CPUs and on
        tensor cores, and changes results in the last digits. ``"auto"`` does so, as it was
        faster for every network measured (docs/speed.md). None is False; but where accuracy is
        measured (`evaluate`) and the attack has several steps, it is ``"auto"``.
    fold
        Fold batch norms into convolutions during the attack where that is safe; logits change in
        the last digits. ``"auto"`` does so if the attack has steps enough to pay for it. None as
        above.
    """

    step_size: Ratio | None = None
    random_start: bool = False
    targeted: bool = False
    loss: Any = "ce"
    bn_mode: Literal["eval", "train"] = "eval"
    channels_last: bool | Literal["auto"] | None = None
    fold: bool | Literal["auto"] | None = None

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise UserError(f"step_size: {self.step_size!r} is not allowed; a number > 0 is")
        if not callable(self.loss) and self.loss not in [*LOSSES]:
            raise UserError(
                f"loss: {self.loss!r} is not allowed; allowed: {', '.join(LOSSES)} or a function"
            )
        if self.loss == "dlr" and self.targeted:
            raise UserError("loss: 'dlr' is not allowed with targeted; it needs the true label too")
        if self.fold is True and self.bn_mode == "train":
            raise UserError("fold: True is not allowed with bn_mode 'train'; the statistics change")


@dataclasses.dataclass(frozen=True)
class PGDSettings(FGSMSettings):
    """Settings of PGD.

    Parameters
    ----------
    steps
        Number of gradient steps.
    restarts
        Number of runs from different random starts. Each picture keeps its first success, else its
        highest loss; later runs attack only the pictures that still resist.
    early_stop
        A picture leaves the batch at its first misclassified iterate and keeps that iterate.
        Otherwise the last iterate counts, as in adversarial training.
    momentum
        Decay of the gradients of earlier steps (MI-FGSM); 0 is none.
    """

    random_start: bool = True
    steps: int = 10
    restarts: int = 1
    early_stop: bool = False
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("steps", "restarts"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number >= 1 is")
        if not 0 <= self.momentum < math.inf:
            raise UserError(f"momentum: {self.momentum!r} is not allowed; a number >= 0 is")
        if self.restarts > 1 and not self.random_start:
            raise UserError("restarts: more than 1 needs random_start; the runs would be equal")
        if self.bn_mode == "train" and (self.early_stop or self.restarts > 1):
            raise UserError(
                "bn_mode: 'train' is not allowed with early_stop or restarts, which take pictures "
                "out of the batch and so change its statistics"
            )


@dataclasses.dataclass(frozen=True)
class MIFGSMSettings(PGDSettings):
    """Settings of MI-FGSM: those of PGD, with momentum 1 and no random start.

    The paper's step is eps/steps; the default here is eps/4, the 2/255 for 8/255 that torchattacks
    uses and that reproduces the figures RobNet's paper prints best.
    """

    random_start: bool = False
    momentum: float = 1.0


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
        settings = {**_fields(self.settings), "early_stop": True}
        settings |= {k: "auto" for k in ("channels_last", "fold") if settings[k] is None}
        return type(self)(self.threat, label=self.label, **settings)

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
        velocity = torch.zeros_like(adv) if s.momentum else None
        # With early_stop, `out` collects the pictures and `rows` says where the batch's belong.
        out = torch.empty_like(adv) if s.early_stop else adv
        rows = torch.arange(len(y), device=y.device) if s.early_stop else None
        for _ in range(s.steps):
            logits = victim(adv.requires_grad_())
            if rows is not None:
                keep = self._fooled(logits, y).logical_not().nonzero().flatten()
                if len(keep) == 0:
                    break
            gradient = loss_gradient(logits, adv, y, loss, half=victim.half)
            victim.watch(gradient)
            adv.detach_()
            if rows is not None and len(keep) < len(y):
                out[rows] = adv
                rows, y, ball, adv = rows[keep], y[keep], ball.select(keep), adv[keep]
                gradient = gradient[keep]
                velocity = None if velocity is None else velocity[keep]
            if velocity is not None:
                gradient = _accumulate_(velocity, gradient, s.momentum)
            ball.project_(adv.add_(ball.direction_(gradient), alpha=step))
        adv.detach_()
        if rows is None:
            return adv
        out[rows] = adv
        return out

    def _loss(self) -> Loss:
        loss: Loss = self.settings.loss
        return loss if callable(loss) else LOSSES[self.settings.loss]

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        return (logits.argmax(1) == y) == self.settings.targeted

    @torch.no_grad()
    def _score(self, victim: Victim, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the attacker gained on each picture, and whether that is a success."""
        logits = victim(adv)
        loss = self._loss()(logits, y)
        return (-loss if self.settings.targeted else loss), self._fooled(logits, y)


def _fields(settings: FGSMSettings) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}


def _accumulate_(velocity: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """MI-FGSM, eq. 6: decay the velocity, add the gradient at mean size 1; a copy of the result."""
    size = gradient.abs().mean((1, 2, 3), keepdim=True)
    gradient.div_(size.clamp_min_(torch.finfo(gradient.dtype).tiny))
    return velocity.mul_(momentum).add_(gradient).clone()


@registry.attacks.register("mi-fgsm")
class MIFGSM(PGD):
    """PGD with momentum; settings: :class:`MIFGSMSettings`."""

    name = "mi-fgsm"

    @staticmethod
    def _parse(settings: dict[str, Any]) -> PGDSettings:
        return parse(MIFGSMSettings, settings, "attack 'mi-fgsm'")


@dataclasses.dataclass(frozen=True)
class CWSettings(PGDSettings):
    """Settings of CW: those of PGD, with the loss ``"margin"``."""

    loss: Any = "margin"


@registry.attacks.register("cw")
class CW(PGD):
    """PGD on the margin of Carlini and Wagner; settings: :class:`CWSettings`.

    "CW-40" of papers on adversarial training (TRADES, MART, RC-NAS) is 40 steps of it inside the
    ball; Carlini and Wagner's own search for the smallest change is ``torchattacks:CW``.
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
        return PGDSettings(**_fields(parse(FGSMSettings, settings, "attack 'fgsm'")), steps=1)

    def _default_label(self) -> str:
        return super()._default_label().replace("fgsm1", "fgsm")
