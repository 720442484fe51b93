"""The two threat balls, as three small functions each: random start, step direction, projection.

A ball belongs to one batch. Iterates are float32 (float64 for float64 pictures) whatever the type
of the pictures. A fourth function, `exact`, gives the pictures back in their own type such that
ball and box [0, 1] hold exactly when measured in float64: a cast rounds to nearest, which is up to
half a unit outside, so what fell outside moves one representable number towards the clean picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from nni_robust.attacks._noise import Noise
from nni_robust.threat import ThreatModel

__all__ = ["Ball", "L2Ball", "LinfBall", "ball_around"]

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
# A Euclidean norm summed in another order differs in its last digits; relative.
_L2_SLACK = 1e-9
_DIMS = (1, 2, 3)


def _nudge_(value: Tensor, units: Tensor) -> Tensor:
    """Move non-negative floats by whole representable numbers, in place.

    The bits of non-negative floats, read as integers, are in the order of the floats.
    """
    value.view(_BITS[value.dtype]).add_(units)
    return value


class Ball(ABC):
    """The pictures that a threat model allows around each picture of a batch.

    Parameters
    ----------
    x
        (N, C, H, W), float16 to float64, in [0, 1].
    eps
        Radius in pixel units, more than 0.
    """

    def __init__(self, x: Tensor, eps: float) -> None:
        self.pictures, self.eps = x, eps
        #: The clean pictures in the type of the iterates.
        self.x = x if x.dtype == torch.float64 else x.float()

    @abstractmethod
    def random_start(self, noise: Noise, stream: int) -> Tensor:
        """A uniformly random point of each ball, moved into the box."""

    @abstractmethod
    def direction_(self, gradient: Tensor) -> Tensor:
        """The unit step that raises the loss most, in place; zero where the gradient is."""

    @abstractmethod
    def project_(self, adv: Tensor) -> Tensor:
        """The nearest allowed pictures, in place, up to rounding."""

    @abstractmethod
    def exact(self, adv: Tensor) -> Tensor:
        """Project once more and return the pictures' own type, exactly inside ball and box."""

    def select(self, keep: Tensor) -> Ball:
        """The ball of some pictures of the batch."""
        return type(self)(self.pictures[keep], self.eps)


class LinfBall(Ball):
    """Every pixel may change by `eps`: ball and box together are one interval for each pixel."""

    def __init__(self, x: Tensor, eps: float) -> None:
        super().__init__(x, eps)
        wide = x.double()
        low, high = ((wide + shift).clamp_(0, 1).to(x.dtype) for shift in (-eps, eps))
        self.low = _nudge_(low, wide - low > eps).to(self.x.dtype)
        self.high = _nudge_(high, (high - wide > eps).to(torch.int8).neg_()).to(self.x.dtype)

    def random_start(self, noise: Noise, stream: int) -> Tensor:
        start = noise.uniform(self.x, stream).mul_(2 * self.eps).sub_(self.eps)
        return self.project_(start.add_(self.x))

    def direction_(self, gradient: Tensor) -> Tensor:
        return gradient.sign_()

    def project_(self, adv: Tensor) -> Tensor:
        return adv.clamp_(self.low, self.high)

    def exact(self, adv: Tensor) -> Tensor:
        # The ends are numbers of the pictures' type, so rounding to nearest stays between them.
        return adv.to(self.x.dtype).clamp(self.low, self.high).to(self.pictures.dtype)

    def select(self, keep: Tensor) -> LinfBall:
        part = object.__new__(LinfBall)
        part.eps, part.pictures = self.eps, self.pictures[keep]
        part.x, part.low, part.high = self.x[keep], self.low[keep], self.high[keep]
        return part


class L2Ball(Ball):
    """The change of a picture, taken as one vector, may be `eps` long."""

    def random_start(self, noise: Noise, stream: int) -> Tensor:
        start = self.direction_(noise.normal(self.x, stream))
        # The radius is distributed like the D-th root of a uniform number in D dimensions.
        uniform = noise.uniform(self.x[:, :1, :1, :1], 2 * stream + 3)
        start.mul_(uniform.pow_(1 / self.x[0].numel()).mul_(self.eps))
        return self.project_(start.add_(self.x))

    def direction_(self, gradient: Tensor) -> Tensor:
        tiny = torch.finfo(gradient.dtype).tiny
        # Largest entry first: the squares of small gradients underflow.
        gradient.div_(gradient.abs().amax(_DIMS, keepdim=True).clamp_min_(tiny))
        length = torch.linalg.vector_norm(gradient, dim=_DIMS, keepdim=True)
        return gradient.div_(length.clamp_min_(tiny))

    def project_(self, adv: Tensor) -> Tensor:
        return self._shrink_(adv.sub_(self.x), self.eps).add_(self.x).clamp_(0, 1)

    def exact(self, adv: Tensor) -> Tensor:
        wide = self.pictures.double()
        change = self._shrink_(adv.double().clamp(0, 1).sub_(wide), self.eps, _L2_SLACK)
        # abs: a negative zero has the bits of a large negative integer.
        out = (wide + change).clamp_(0, 1).abs_().to(self.pictures.dtype)
        moved = out - wide
        outside = moved.abs() > change.abs_()
        up, down = outside & (moved < 0), outside & (moved > 0)
        return _nudge_(out, up.to(torch.int8).sub_(down.to(torch.int8)))

    @staticmethod
    def _shrink_(change: Tensor, radius: float, slack: float = 0.0) -> Tensor:
        """Changes longer than `radius`, less half the slack, get that length less all of it."""
        length = torch.linalg.vector_norm(change, dim=_DIMS, keepdim=True)
        outside = length > radius * (1 - slack / 2)
        return change.mul_(torch.where(outside, radius * (1 - slack) / length, 1.0))


def ball_around(x: Tensor, threat: ThreatModel) -> Ball:
    """The ball of a threat model around each picture."""
    return (LinfBall if threat.norm == "linf" else L2Ball)(x, threat.eps)
