"""What every loss of a training keeps to, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Forward", "LossWrapper", "Once", "RobustLoss", "hard_labels", "kl_divergence"]

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
            (N,), int64; or (N, K), float32: the share that each class has in a mixed picture.
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


class LossWrapper(Protocol):
    """Something that a training adds to its recipe's loss, such as a term of a teacher's maps."""

    def settings(self) -> dict[str, Any]:
        """All that determines what it does, JSON-able; a part of what the training is."""

    def __call__(self, loss: RobustLoss, model: nn.Module, teacher: nn.Module | None) -> RobustLoss:
        """The loss to train with.

        Called before the first batch: once for the loss of the recipe, once more for that of its
        clean epochs where it has any.

        Parameters
        ----------
        loss
            What the recipe says, distillation included.
        model
            The network itself, without any wrapper, on its device: forward hooks on its modules
            see what the loss's call of `forward` computes.
        teacher
            The training's teacher, frozen, in evaluation mode, on the same device; or None.
        """


class Once:
    """One step on each batch."""

    def replay(self, x: torch.Tensor, x_adv: torch.Tensor, done: int) -> torch.Tensor | None:
        return None


def hard_labels(y: torch.Tensor) -> torch.Tensor:
    """(N,) labels: `y` itself, or the classes with the largest share of mixed ones."""
    return y.argmax(1) if y.is_floating_point() else y


def kl_divergence(clean: torch.Tensor, attacked: torch.Tensor) -> torch.Tensor:
    """KL(softmax(clean) || softmax(attacked)) of each picture: two times (N, K) logits to (N,)."""
    p, q = F.log_softmax(clean, dim=1), F.log_softmax(attacked, dim=1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
