"""Batch norms that are not folded, as what they are in evaluation mode: scale and shift.

Torch's batch norm keeps its input for the backward pass, whoever asks for a gradient. An attack
needs none of weights, and then the gradient in the pictures is the scale alone: nothing is kept,
and both passes take half of the time (docs/speed.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Affine", "scale_and_shift"]


class Affine:
    """Stands for the forward of a batch norm in evaluation mode whose weights need no gradient.

    Parameters
    ----------
    norm
        A :class:`torch.nn.BatchNorm2d` with running statistics, which stay as they are meanwhile.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        self.norm = norm
        scale, shift = scale_and_shift(norm)
        kind = norm.running_mean.dtype
        self.scale, self.shift = (t.to(kind).view(-1, 1, 1) for t in (scale, shift))

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != len(self.scale) or x.dtype != self.scale.dtype:
            # The batch norm converts, or has its own message.
            return type(self.norm).forward(self.norm, x)
        if x.is_contiguous(memory_format=torch.channels_last):
            return torch.addcmul(self.shift, x, self.scale)
        # In this format two passes, which vectorise, are faster than one, which does not.
        return (x * self.scale).add_(self.shift)


@torch.no_grad()
def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel by and then adds; (C,), float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale, shift
