"""Free adversarial training: Shafahi et al., "Adversarial training for free!" (1904.12843), alg. 1.

Each batch is stepped on m times. The backward pass of a step gives the gradient of the weights and
that of the pictures; the first moves the network, the second moves the perturbation that the next
replay of the batch starts from. The attack therefore costs no passes of its own.

One thing differs from the paper: there the perturbation also goes on to the next batch, whose
pictures have nothing to do with it; here every batch starts anew from a random point of the ball
(or the clean pictures, without ``attack.random_start``). So a checkpoint between two batches holds
everything, on any number of devices.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import ball_around
from nni_robust.threat import ThreatModel

if TYPE_CHECKING:
    from nni_robust.training._loss_base import Forward

__all__ = ["Free"]


@dataclasses.dataclass(frozen=True)
class Free:
    """Cross entropy of pictures whose perturbation grows while they are trained on.

    Parameters
    ----------
    threat
        The ball.
    replays
        Steps on each batch, m in the paper.
    step_size
        Length of the perturbation's step after each of them but the last; None is eps.
    random_start
        Start each batch at random points of the ball.
    smoothing
        Share of a label that all classes divide among them.
    """

    threat: ThreatModel
    replays: int
    step_size: float | None = None
    random_start: bool = True
    smoothing: float = 0.0

    def perturb(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Where the first replay starts; the pictures ask for a gradient."""
        if not self.random_start:
            return x.clone().requires_grad_()
        noise = Noise(seed, torch.arange(len(x), device=x.device))
        ball = ball_around(x, self.threat)
        return ball.exact(ball.random_start(noise, 0)).requires_grad_()

    def __call__(
        self, forward: Forward, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (logits,) = forward(x_adv)
        return F.cross_entropy(logits, y, label_smoothing=self.smoothing), logits

    def replay(self, x: torch.Tensor, x_adv: torch.Tensor, done: int) -> torch.Tensor | None:
        """One step along the gradient that the last replay left in `x_adv`."""
        if done == self.replays:
            return None
        if x_adv.grad is None:  # the network did not look at the pictures
            return x_adv
        ball = ball_around(x, self.threat)
        step = self.threat.eps if self.step_size is None else self.step_size
        moved = x_adv.detach().add_(ball.direction_(x_adv.grad), alpha=step)
        return ball.exact(ball.project_(moved)).requires_grad_()
