"""Training with a teacher: adversarial distillation, and a term for any other loss.

* ``rslad``: Zi et al., "Revisiting adversarial robustness distillation: robust soft labels make
  student better" (ICCV 2021), table 1: x' maximises KL(T(x) || S(x')), and the student pays
  5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)). Labels play no part.
* ``ard``: Goldblum et al., "Adversarially robust distillation" (1905.09747), eq. 3: PGD on the
  student's cross entropy, then alpha t^2 KL(T_t(x) || S_t(x')) + (1 - alpha) CE(S(x), y).
* the term ``distillation``: weight t^2 KL(T_t(x') || S_t(x')) on the pictures trained on, beside
  any loss (Hinton et al., 1503.02531).

T and S are the softmax of teacher and student, T_t and S_t that of their logits divided by a
temperature t. The teacher is never trained: no gradient, its own statistics of batch normalisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.attacks.gradient import PGD
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training._loss_base import Forward, Once, RobustLoss, hard_labels, kl_divergence

__all__ = ["Ard", "Distilled", "Oracle", "Rslad"]


class Oracle:
    """A teacher's logits, computed once for a batch however many ask.

    Parameters
    ----------
    network
        The teacher, frozen and in evaluation mode, on the pictures' device.
    autocast
        Precision to compute in, such as Fabric's ``autocast``.
    """

    def __init__(
        self,
        network: nn.Module,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.network, self.autocast = network, autocast
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, K), float32, of pictures (N, C, H, W)."""
        if self._last is None or self._last[0] is not x:
            with torch.no_grad(), self.autocast():
                self._last = x, self.network(x).float()
        return self._last[1]


def _asked(teacher: Oracle | None, x: torch.Tensor) -> torch.Tensor:
    assert teacher is not None, "a training checks that it has the teacher that its recipe needs"
    return teacher(x)


@dataclasses.dataclass(frozen=True)
class Rslad(Once):
    """RSLAD; `settings` are those of the inner PGD."""

    threat: ThreatModel
    settings: dict[str, Any]
    teacher: Oracle | None
    robust: float = 5 / 6

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        target = _asked(self.teacher, x)

        def divergence(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return _divergence(target, logits)

        return PGD(self.threat, **self.settings, loss=divergence)(
            model, x, hard_labels(y), seed=seed
        )

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        target = _asked(self.teacher, x)
        clean, attacked = forward(x, x_adv)
        natural, robust = (_divergence(target, logits).mean() for logits in (clean, attacked))
        return self.robust * robust + (1 - self.robust) * natural, attacked


@dataclasses.dataclass(frozen=True)
class Ard(Once):
    """ARD; `settings` are those of the PGD, `weight` is alpha.

    `smoothing` is that of the labels in the second term.
    """

    threat: ThreatModel
    settings: dict[str, Any]
    teacher: Oracle | None
    weight: float
    temperature: float
    smoothing: float = 0.0

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        return PGD(self.threat, **self.settings)(model, x, hard_labels(y), seed=seed)

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        target = _asked(self.teacher, x)
        clean, attacked = forward(x, x_adv)
        robust = self.temperature**2 * _divergence(target, attacked, self.temperature).mean()
        natural = F.cross_entropy(clean, y, label_smoothing=self.smoothing)
        return self.weight * robust + (1 - self.weight) * natural, attacked


@dataclasses.dataclass(frozen=True)
class Distilled:
    """Another loss plus a teacher's opinion of the pictures trained on."""

    loss: RobustLoss
    teacher: Oracle | None
    weight: float
    temperature: float

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        return self.loss.perturb(model, x, y, seed)

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        target = _asked(self.teacher, x_adv)
        loss, logits = self.loss(forward, x, x_adv, y)
        term = self.temperature**2 * _divergence(target, logits, self.temperature).mean()
        return loss + self.weight * term, logits

    def replay(self, x: torch.Tensor, x_adv: torch.Tensor, done: int) -> torch.Tensor | None:
        return self.loss.replay(x, x_adv, done)


def _divergence(
    target: torch.Tensor, logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) of each picture, at a temperature: two times (N, K) to (N,)."""
    if target.shape != logits.shape:
        raise UserError(
            f"the teacher knows {target.shape[1]} classes and the network {logits.shape[1]}; they "
            "must know the same"
        )
    return kl_divergence(target / temperature, logits / temperature)
