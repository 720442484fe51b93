"""Losses of adversarial training: which pictures the network is shown, and what it pays.

* ``madry``: Madry et al., "Towards deep learning models resistant to adversarial attacks"
  (1706.06083), eq. 2.1: cross entropy of pictures attacked by PGD.
* ``trades``: Zhang et al., "Theoretically principled trade-off between robustness and accuracy"
  (1901.08573), eq. 5: CE(f(x), y) + beta * KL(f(x) || f(x')), where x' maximises the same KL
  divergence. The authors' code starts the inner PGD from x + 0.001 * Gaussian noise; we start from
  a uniformly random point of the ball, as PGD does. Any start but x itself serves: there the
  gradient vanishes.
* ``mart``: Wang et al., "Improving adversarial robustness requires revisiting misclassified
  examples" (ICLR 2020), eq. 11: boosted cross entropy of pictures attacked by PGD, plus beta times
  the KL divergence of clean and attacked prediction, weighted by the clean picture's 1 - p_label.
* ``fast``: Wong et al., "Fast is better than free" (2001.03994): cross entropy after one step of
  1.25 eps from a random start. It may collapse: see :mod:`nni_robust.training._collapse`.
* ``clean``: cross entropy of the pictures themselves.
* ``madry`` with replays: free adversarial training, see :mod:`nni_robust.training.free`.
* ``rslad``, ``ard`` and the distillation term: :mod:`nni_robust.training.distilled`.

Labels may be mixed (:mod:`nni_robust.training.cutmix`): shares of the classes, (N, K), against
which all of them but MART pay, and which Madry's attack moves the pictures away from.

During the attack batch normalisation uses its running statistics by default (the authors of TRADES
do so too); the seeds' repositories use the batch's: ``attack.bn_mode: train``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.attacks import undisturbed
from nni_robust.attacks.gradient import PGD
from nni_robust.threat import ThreatModel
from nni_robust.training._loss_base import (
    Forward,
    LossWrapper,
    Once,
    RobustLoss,
    hard_labels,
    kl_divergence,
)
from nni_robust.training.distilled import Ard, Distilled, Oracle, Rslad
from nni_robust.training.free import Free
from nni_robust.training.recipe import Recipe

__all__ = [
    "Clean",
    "Forward",
    "LossWrapper",
    "Madry",
    "Mart",
    "Once",
    "RobustLoss",
    "Trades",
    "boosted_cross_entropy",
    "build_loss",
    "clean_loss",
    "hard_labels",
    "kl_divergence",
]

#: Length of the step of ``fast``, in units of eps.
FAST_STEP = 1.25


@dataclasses.dataclass(frozen=True)
class Clean(Once):
    """No attack; `smoothing` is the share of a label that all classes divide among them."""

    smoothing: float = dataclasses.field(default=0.0, kw_only=True)

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        return x

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (logits,) = forward(x_adv)
        return F.cross_entropy(logits, y, label_smoothing=self.smoothing), logits


@dataclasses.dataclass(frozen=True)
class Madry(Clean):
    """Standard adversarial training; `settings` are those of its PGD."""

    threat: ThreatModel
    settings: dict[str, Any]

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        attack = PGD(self.threat, **self.settings)
        if y.is_floating_point():

            def mixed(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
                return F.cross_entropy(logits, y, reduction="none")

            attack = PGD(self.threat, **self.settings, loss=mixed)
        return attack(model, x, hard_labels(y), seed=seed)


@dataclasses.dataclass(frozen=True)
class Trades(Once):
    """TRADES; `settings` are those of the inner PGD, `beta` weighs the second term.

    `smoothing` is that of the labels in the first term.
    """

    threat: ThreatModel
    settings: dict[str, Any]
    beta: float
    smoothing: float = 0.0

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        with torch.no_grad(), undisturbed(model, self.settings["bn_mode"]):
            clean = model(x).float()

        def divergence(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return kl_divergence(clean, logits)

        return PGD(self.threat, **self.settings, loss=divergence)(
            model, x, hard_labels(y), seed=seed
        )

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        clean, attacked = forward(x, x_adv)
        robust = kl_divergence(clean, attacked).mean()
        natural = F.cross_entropy(clean, y, label_smoothing=self.smoothing)
        return natural + self.beta * robust, attacked


@dataclasses.dataclass(frozen=True)
class Mart(Madry):
    """MART; `beta` weighs the second term (5 in the paper)."""

    beta: float

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        clean, attacked = forward(x, x_adv)
        doubt = 1 - clean.softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
        regular = (kl_divergence(clean, attacked) * doubt).mean()
        return boosted_cross_entropy(attacked, y).mean() + self.beta * regular, attacked


def boosted_cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """-log p_y - log(1 - max_{k != y} p_k): (N, K) logits and (N,) labels to (N,).

    1 - p_k is the sum of all other probabilities, so that its logarithm is exact where p_k is
    almost 1; the authors' code adds 0.0001 instead.
    """
    label = y.unsqueeze(1)
    rival = logits.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    rest = logits.scatter(1, rival, -torch.inf).logsumexp(1)
    return F.cross_entropy(logits, y, reduction="none") - (rest - logits.logsumexp(1))


def build_loss(
    recipe: Recipe,
    threat: ThreatModel,
    teacher: Oracle | None = None,
    *,
    changing: bool = False,
) -> RobustLoss:
    """The loss that a recipe names, for the epochs after its clean ones.

    Parameters
    ----------
    recipe, threat
        See :func:`nni_robust.training.train`.
    teacher
        The teacher's logits, where the recipe needs any.
    changing
        The network is another one in every batch, as supernets are: folding "auto" is off.
    """
    if changing and recipe.attack.fold == "auto":
        recipe = dataclasses.replace(recipe, attack=dataclasses.replace(recipe.attack, fold=False))
    loss = _named_loss(recipe, threat, teacher)
    return loss if recipe.loss == "ard" else _with_teacher(loss, recipe, teacher)


def clean_loss(recipe: Recipe, teacher: Oracle | None = None) -> RobustLoss:
    """The loss of a recipe's clean epochs; see :func:`build_loss`."""
    return _with_teacher(Clean(smoothing=recipe.label_smoothing), recipe, teacher)


def _named_loss(recipe: Recipe, threat: ThreatModel, teacher: Oracle | None) -> RobustLoss:
    settings, smoothing = dataclasses.asdict(recipe.attack), recipe.label_smoothing
    if recipe.loss == "clean":
        return Clean(smoothing=smoothing)
    if recipe.loss == "trades":
        return Trades(threat, settings, recipe.weight_of_second_term, smoothing)
    if recipe.loss == "mart":
        return Mart(threat, settings, recipe.weight_of_second_term)
    if recipe.loss == "rslad":
        return Rslad(threat, settings, teacher)
    if recipe.loss == "ard":
        return Ard(threat, settings, teacher, *recipe.ard_weights, smoothing)
    if recipe.replays > 1:
        attack = recipe.attack
        return Free(threat, recipe.replays, attack.step_size, attack.random_start, smoothing)
    if recipe.loss == "fast" and recipe.attack.step_size is None:
        settings["step_size"] = FAST_STEP * threat.eps or None
    return Madry(threat, settings, smoothing=smoothing)


def _with_teacher(loss: RobustLoss, recipe: Recipe, teacher: Oracle | None) -> RobustLoss:
    term = recipe.distillation
    return loss if term is None else Distilled(loss, teacher, term.weight, term.temperature)
