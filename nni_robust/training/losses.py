"""Losses of adversarial training: which pictures the network is shown, and what it pays.

* ``madry``: Madry et al., "Towards deep learning models resistant to adversarial attacks"
  (1706.06083), eq. 2.1: cross entropy of pictures attacked by PGD.
* ``trades``: Zhang et al., "Theoretically principled trade-off between robustness and accuracy"
  (1901.08573), eq. 5: CE(f(x), y) + beta * KL(f(x) || f(x')), where x' maximises the same KL
  divergence. The authors' code starts the inner PGD from x + 0.001 * Gaussian noise; we start from
  a uniformly random point of the ball, as PGD does. Any start but x itself serves: there the
  gradient vanishes.
* ``clean``: cross entropy of the pictures themselves.
* ``madry`` with replays: free adversarial training, see :mod:`nni_robust.training.free`.

During the attack batch normalisation uses its running statistics by default (the authors of TRADES
do so too); the seeds' repositories use the batch's: ``attack.bn_mode: train``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.attacks import Attack, undisturbed
from nni_robust.attacks.gradient import PGD
from nni_robust.threat import ThreatModel
from nni_robust.training.free import Free
from nni_robust.training.recipe import Recipe

__all__ = ["Clean", "Forward", "Madry", "RobustLoss", "Trades", "build_loss", "kl_divergence"]

#: The network in training, from one or more batches of pictures to the logits of each: one call, so
#: that a network on several devices is synchronised once.
Forward = Callable[..., tuple[torch.Tensor, ...]]


class RobustLoss(Protocol):
    """Inner maximisation and outer minimisation of one way to train."""

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """The pictures to train on.

        Parameters
        ----------
        model
            The network; it is left as it was.
        x
            (N, C, H, W), float32, in [0, 1].
        y
            (N,), int64.
        seed
            Seed of random starts.
        """

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss to minimise (mean over pictures, a scalar) and the logits (N, K) of `x_adv`."""

    def replay(self, x: torch.Tensor, x_adv: torch.Tensor, done: int) -> torch.Tensor | None:
        """The pictures of one more step on the same batch; None once the batch is done.

        Parameters
        ----------
        x
            The batch.
        x_adv
            What the last step trained on, with its gradient where it asked for one.
        done
            Steps taken on this batch, from 1.
        """


class Once:
    """One step on each batch."""

    def replay(self, x: torch.Tensor, x_adv: torch.Tensor, done: int) -> torch.Tensor | None:
        return None


@dataclasses.dataclass(frozen=True)
class Clean(Once):
    """No attack."""

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        return x

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (logits,) = forward(x_adv)
        return F.cross_entropy(logits, y), logits


@dataclasses.dataclass(frozen=True)
class Madry(Clean):
    """Standard adversarial training."""

    attack: Attack

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        return self.attack(model, x, y, seed=seed)


@dataclasses.dataclass(frozen=True)
class Trades(Once):
    """TRADES; `settings` are those of the inner PGD, `beta` weighs the second term."""

    threat: ThreatModel
    settings: dict[str, Any]
    beta: float

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        with torch.no_grad(), undisturbed(model, self.settings["bn_mode"]):
            clean = model(x).float()

        def divergence(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return kl_divergence(clean, logits)

        return PGD(self.threat, **self.settings, loss=divergence)(model, x, y, seed=seed)

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        clean, attacked = forward(x, x_adv)
        robust = kl_divergence(clean, attacked).mean()
        return F.cross_entropy(clean, y) + self.beta * robust, attacked


def kl_divergence(clean: torch.Tensor, attacked: torch.Tensor) -> torch.Tensor:
    """KL(softmax(clean) || softmax(attacked)) of each picture: two times (N, K) logits to (N,)."""
    p, q = F.log_softmax(clean, dim=1), F.log_softmax(attacked, dim=1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)


def build_loss(recipe: Recipe, threat: ThreatModel) -> RobustLoss:
    """The loss that a recipe names, for the epochs after its clean ones."""
    settings = dataclasses.asdict(recipe.attack)
    if recipe.loss == "clean":
        return Clean()
    if recipe.loss == "trades":
        return Trades(threat, settings, recipe.beta)
    if recipe.replays > 1:
        attack = recipe.attack
        return Free(threat, recipe.replays, attack.step_size, attack.random_start)
    return Madry(PGD(threat, **settings))
