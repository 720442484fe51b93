"""Whether one-step adversarial training has collapsed.

Training with one step may, within an epoch, end in a network that resists exactly that step and
nothing else, with a rising training accuracy ("catastrophic overfitting": Wong et al., 2001.03994,
section 5.3; Andriushchenko and Flammarion, 2007.02617). After each epoch the last batch is attacked
by the training's step and by PGD-10. Collapsed is a network that is right on fewer pictures than
chance under PGD, yet on a share of at least 0.3 more than chance under its own step. The training
then stops, for its weights are lost: a search gets a failed trial instead of a wrong score.
"""

from __future__ import annotations

import torch
from torch import nn

from nni_robust.attacks import attack_from_spec, undisturbed
from nni_robust.threat import ThreatModel
from nni_robust.training._loss_base import RobustLoss

__all__ = ["collapsed", "count_right"]

_LEAD = 0.3


def count_right(
    model: nn.Module,
    loss: RobustLoss,
    threat: ThreatModel,
    x: torch.Tensor,
    y: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """Pictures of a batch that are right under the training's step, and under PGD-10; and all.

    Parameters
    ----------
    model
        The network; left as it was.
    loss
        The loss whose attack has one step.
    threat
        Ball of PGD-10.
    x, y
        Pictures (N, C, H, W) in [0, 1] and labels (N,).
    seed
        Seed of both attacks.

    Returns
    -------
    torch.Tensor
        (3,), int64, on the pictures' device.
    """
    attack = attack_from_spec("pgd10", threat)
    pictures = loss.perturb(model, x, y, seed), attack(model, x, y, seed=seed)
    with torch.no_grad(), undisturbed(model):
        right = [(model(adv).argmax(1) == y).sum() for adv in pictures]
    return torch.stack([*right, torch.full_like(right[0], len(y))])


def collapsed(one_step: float, many_steps: float, num_classes: int) -> bool:
    """Whether two accuracies in [0, 1] are those of a collapsed network."""
    chance = 1 / num_classes
    return many_steps < chance and one_step >= chance + _LEAD
