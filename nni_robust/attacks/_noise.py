"""Random numbers for starting points.

Without a seed they come from torch's global generator, so that a seeded training run repeats. With
a seed, the number at one pixel of one picture depends on the seed and on the picture's index only:
not on its batch, its neighbours, the device or the memory format. That takes no generator per
picture: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014) hashes a counter, for all pixels at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Noise"]

_MASK = (1 << 64) - 1
_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return value - (1 << 64) if value >> 63 else value


def _mix(z: int) -> int:
    """SplitMix64's output function."""
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
    return z ^ (z >> 31)


def _mix_(z: Tensor) -> Tensor:
    """The same on int64 tensors, in place; int64 products wrap, right shifts are made logical."""
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(_signed(factor))
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


class Noise:
    """Source of the starting points of one batch.

    Parameters
    ----------
    seed
        None draws from torch's global generator.
    index
        (N,), int64: which pictures these are in their data set. Used only with a seed.
    """

    def __init__(self, seed: int | None, index: Tensor) -> None:
        self.seed, self.index = seed, index

    def select(self, keep: Tensor) -> Noise:
        """The source of some pictures of the batch."""
        return Noise(self.seed, self.index[keep])

    def uniform(self, like: Tensor, stream: int) -> Tensor:
        """Numbers in [0, 1), shaped like `like`; another `stream` gives others."""
        if self.seed is None:
            return torch.rand_like(like)
        key = _signed(_mix((_mix(self.seed & _MASK) + stream * _GAMMA) & _MASK))
        picture = _mix_((self.index + 1).mul_(_signed(_GAMMA)).add_(key))
        pixel = torch.arange(1, like[0].numel() + 1, device=like.device).mul_(_signed(_GAMMA))
        bits = _mix_(picture.unsqueeze(1) + pixel)
        # The 24 best bits: all that a float32 in [0, 1) holds.
        unit = (bits >> 40).bitwise_and_((1 << 24) - 1).to(like.dtype).mul_(2.0**-24)
        return torch.empty_like(like).copy_(unit.view(like.shape))

    def normal(self, like: Tensor, stream: int) -> Tensor:
        """Standard normal numbers, shaped like `like` (Box-Muller from two streams)."""
        if self.seed is None:
            return torch.randn_like(like)
        radius = self.uniform(like, 2 * stream + 1).neg_().log1p_().mul_(-2).sqrt_()
        return self.uniform(like, 2 * stream + 2).mul_(2 * math.pi).cos_().mul_(radius)
