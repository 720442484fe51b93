"""The loop of the gradient attacks, step by step, on tensors that stay where they are.

:meth:`Ascent.step` is one gradient step of the papers in :mod:`nni_robust.attacks.gradient`. It
reads and writes the same memory each time and asks the device for nothing, so that a CUDA graph can
replay it (:mod:`nni_robust.attacks._graph`). :meth:`Ascent.shrink` is what cannot be replayed:
pictures that are broken leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nni_robust.attacks._base import Victim
from nni_robust.attacks._losses import Loss, loss_gradient
from nni_robust.attacks._norms import Ball

__all__ = ["Ascent", "Fooled"]

#: (N, K) logits and (N,) labels to (N,), bool: which pictures the attack has won.
Fooled = Callable[[Tensor, Tensor], Tensor]


class Ascent:
    """One run of a gradient attack on one batch.

    Parameters
    ----------
    victim
        The frozen network.
    y
        (N,), int64.
    ball
        What is allowed around each picture.
    adv
        (N, C, H, W), where to start; changed in place.
    loss
        What to climb.
    size
        Length of a step in pixel units; negative goes downhill.
    momentum
        Decay of earlier gradients; 0 is none.
    fooled
        With it, a picture keeps its first iterate that is `fooled`; None moves all to the end.
    """

    def __init__(
        self,
        victim: Victim,
        y: Tensor,
        ball: Ball,
        adv: Tensor,
        *,
        loss: Loss,
        size: float,
        momentum: float = 0.0,
        fooled: Fooled | None = None,
    ) -> None:
        self.victim, self.y, self.ball, self.adv = victim, y, ball, adv
        self.loss, self.size, self.momentum, self.fooled = loss, size, momentum, fooled
        self.velocity = torch.zeros_like(adv) if momentum else None
        #: What the run found so far, where pictures leave; `rows` says where the batch's belong.
        self.out, self.rows = _places(adv, leave=fooled is not None)
        #: (N,), bool: pictures that stand still; used by :meth:`step` only.
        self.done = None if fooled is None else torch.zeros_like(y, dtype=torch.bool)
        self.confirmed = None if self.done is None else self.done.clone()

    def step(self) -> None:
        """One gradient step of all pictures that are not done, with none leaving the batch."""
        logits = self.victim(self.adv.requires_grad_())
        gradient = loss_gradient(logits, self.adv, self.y, self.loss, half=self.victim.half)
        self.victim.watch(gradient)
        self.adv.detach_()
        if self.done is None or self.fooled is None:
            self._move_(self.adv, gradient)
            return
        self.done.logical_or_(self.fooled(logits.detach(), self.y))
        moved = self._move_(self.adv.clone(), gradient)
        self.adv.copy_(torch.where(self.done.view(-1, 1, 1, 1), self.adv, moved))

    def shrinking_step(self) -> bool:
        """The same, but pictures that are broken leave at once; False if none is left."""
        assert self.fooled is not None
        logits = self.victim(self.adv.requires_grad_())
        broken = self.confirm(self.fooled(logits.detach(), self.y))
        keep = broken.logical_not().nonzero().flatten()
        if len(keep) == 0:
            self.adv.detach_()
            return False
        gradient = loss_gradient(logits, self.adv, self.y, self.loss, half=self.victim.half)
        self.victim.watch(gradient)
        self.adv.detach_()
        if len(keep) < len(self.y):
            self.select(keep)
            gradient = gradient[keep]
        self._move_(self.adv, gradient)
        return True

    def look(self) -> int:
        """How many pictures still move; those whose break float32 does not confirm move again."""
        assert self.done is not None
        assert self.confirmed is not None
        if self.victim.reduced:
            new = self.done & ~self.confirmed
            self.done.copy_(self.confirmed | self.confirm(new))
            self.confirmed.copy_(self.done)
        return int(len(self.y) - self.done.sum())

    def confirm(self, broken: Tensor) -> Tensor:
        """Which of the pictures that look broken are so in float32; (N,), bool."""
        if not self.victim.reduced or self.fooled is None:
            return broken
        rows = broken.nonzero().flatten()
        if len(rows):
            logits = self.victim.in_full(self.adv.detach()[rows])
            broken = broken.index_put((rows,), self.fooled(logits, self.y[rows]))
        return broken

    def shrink(self) -> None:
        """Pictures that are done leave the batch; tensors move."""
        assert self.done is not None
        self.select(self.done.logical_not().nonzero().flatten())

    def select(self, keep: Tensor) -> None:
        """Only some pictures go on."""
        assert self.rows is not None
        self.out[self.rows] = self.adv
        self.rows, self.y, self.adv = self.rows[keep], self.y[keep], self.adv[keep]
        self.ball = self.ball.select(keep)
        self.velocity = None if self.velocity is None else self.velocity[keep]
        if self.done is not None and self.confirmed is not None:
            self.done, self.confirmed = self.done[keep], self.confirmed[keep]

    def finish(self) -> Tensor:
        """What was found, for all pictures."""
        self.adv.detach_()
        if self.rows is not None:
            self.out[self.rows] = self.adv
        return self.out

    def state(self) -> list[Tensor]:
        """The tensors that a step changes."""
        health = self.victim.health
        known = [self.adv, self.velocity, self.done, health if isinstance(health, Tensor) else None]
        return [tensor for tensor in known if tensor is not None]

    def _move_(self, adv: Tensor, gradient: Tensor) -> Tensor:
        if self.velocity is not None:
            gradient = _accumulate_(self.velocity, gradient, self.momentum)
        return self.ball.project_(adv.add_(self.ball.direction_(gradient), alpha=self.size))


def _places(adv: Tensor, *, leave: bool) -> tuple[Tensor, Tensor | None]:
    if not leave:
        return adv, None
    return torch.empty_like(adv), torch.arange(len(adv), device=adv.device)


def _accumulate_(velocity: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """MI-FGSM, eq. 6: decay the velocity, add the gradient at mean size 1; a copy of the result."""
    size = gradient.abs().mean((1, 2, 3), keepdim=True)
    gradient.div_(size.clamp_min_(torch.finfo(gradient.dtype).tiny))
    return velocity.mul_(momentum).add_(gradient).clone()
