"""1x1 convolutions of small batches on one thread, by oneDNN.

For fewer than 16 pictures on one thread torch computes a 1x1 convolution as a plain matrix product,
which in channels-last memory is slower than oneDNN's kernel (0.72 of the time for a gradient step
of a RobNet, docs/speed.md). An attack needs no gradient of weights, so both passes are one
such convolution each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Pointwise"]

# From so many pictures on, and with several threads, torch takes oneDNN itself.
_ENOUGH = 16


class Pointwise:
    """Stands for the forward of a convolution whose weights need no gradient.

    Parameters
    ----------
    conv
        A convolution that :meth:`suits`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.transposed: Tensor | None = None

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether it is a 1x1 convolution in float32 on a CPU with nothing special about it."""
        return (
            conv.kernel_size == (1, 1)
            and conv.stride == (1, 1)
            and conv.padding in ((0, 0), "valid")
            and conv.groups == 1
            and conv.weight.dtype == torch.float32
            and conv.weight.device.type == "cpu"
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        if (
            torch.compiler.is_compiling()
            or len(x) >= _ENOUGH
            or torch.get_num_threads() > 1
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return F.conv2d(x, weight, bias)
        if self.transposed is None:
            turned = weight.detach().transpose(0, 1)
            self.transposed = turned.contiguous(memory_format=torch.channels_last)
        out: Tensor = _Product.apply(x, weight, self.transposed, bias)  # type: ignore[no-untyped-call]
        return out


class _Product(torch.autograd.Function):
    """The convolution; its gradient in the pictures is the one with the transposed weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weights = weight, other
        out: Tensor = torch.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight, other = ctx.weights
        gradient: Tensor = _Product.apply(gradients[0], other, weight, None)  # type: ignore[no-untyped-call]
        return gradient, None, None, None
