"""Layers of inverted-residual networks, whose widths are fixed or masked.

A masked network has all channels, and multiplies those that a narrower network would lack by a mask
after the norm and the activation: a mask before a norm would be undone by it. Where the masks are
0 or 1 it computes exactly what the sliced network computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nni_robust.relaxation import SharedDraw

from ._inverted_residual_config import Block, InvertedResidualConfig

__all__ = ["ConvUnit", "Head", "InvertedResidual", "WidthMask"]


class ConvUnit(nn.Module):
    """Convolution with bias, batch norm, and an activation that leaves its input alone.

    (N, C_in, H, W) to (N, C_out, H / stride, W / stride), sides rounded up.

    Parameters
    ----------
    config
        For the norm's momentum and epsilon.
    inputs, outputs, size, stride, groups
        Of the convolution.
    active
        Whether an h-swish follows the norm.
    """

    def __init__(
        self,
        config: InvertedResidualConfig,
        inputs: int,
        outputs: int,
        size: int = 1,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)
        self.bn = nn.BatchNorm2d(outputs, eps=config.bn_eps, momentum=config.bn_momentum)
        # Not in place: attention maps are taken from a unit's output.
        self.act = nn.Hardswish() if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class WidthMask(nn.Module):
    """Multiply the channels by a mixture of prefix masks: shapes stay.

    Parameters
    ----------
    draw
        Holds the mixture's weights: one draw per label, for all that depend on it.
    label
        The choice of the width.
    values
        Candidate widths, each times `repeat`.
    repeat
        Channels per unit of width.
    """

    masks: Tensor

    def __init__(
        self, draw: SharedDraw, label: str, values: tuple[int, ...], repeat: int = 1
    ) -> None:
        super().__init__()
        self.draw, self.label = draw, label
        channels = torch.arange(max(values) * repeat)
        ends = torch.tensor(values)[:, None] * repeat
        self.register_buffer("masks", (channels < ends).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.draw.weights[self.label].to(self.masks)
        return x * (weights @ self.masks).to(x.dtype)[:, None, None]


class InvertedResidual(nn.Module):
    """1x1 convolution (pw), 3x3 depthwise (dw), 1x1 without activation (pwl), and a shortcut.

    (N, C_in, H, W) to (N, C_out, H / stride, W / stride), sides rounded up. The shortcut is there
    where the block's largest widths allow one, whatever the widths are: channels that the output
    lacks are cut off, channels that the input lacks count as zero. A masked network, whose input is
    zero there, does the same.

    Parameters
    ----------
    config
        The network.
    block
        The block at its largest widths.
    inputs, outputs
        Its actual widths.
    """

    def __init__(
        self, config: InvertedResidualConfig, block: Block, inputs: int, outputs: int
    ) -> None:
        super().__init__()
        inner = config.inner(block, inputs)
        self.shortcut = block.shortcut
        self.pw = ConvUnit(config, inputs, inner) if block.expansion > 1 else None
        self.dw = ConvUnit(config, inner, inner, 3, block.stride, groups=inner)
        self.pwl = ConvUnit(config, inner, outputs, active=False)
        self.inner_mask: nn.Module = nn.Identity()
        self.mask: nn.Module = nn.Identity()
        if config.zero_gamma and block.shortcut:
            nn.init.zeros_(self.pwl.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x if self.pw is None else self.pw(x)
        # The depthwise convolution keeps channels apart, so one mask behind it does for both.
        out = self.pwl(self.inner_mask(self.dw(out)))
        if self.shortcut:
            missing = out.shape[1] - x.shape[1]
            # A negative number cuts off.
            out = out + (nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x)
        result: Tensor = self.mask(out)
        return result


class Head(nn.Module):
    """The ImageNet template's end: 1x1 convolution, mean over the picture, 1x1 convolution.

    (N, C, H, W) to (N, head_channels).
    """

    def __init__(self, config: InvertedResidualConfig, inputs: int) -> None:
        super().__init__()
        assert config.head_channels is not None
        inner = config.head_inner(inputs)
        self.pw = ConvUnit(config, inputs, inner)
        self.inner_mask: nn.Module = nn.Identity()
        self.project = nn.Sequential(nn.Conv2d(inner, config.head_channels, 1), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.inner_mask(self.pw(x)).mean(dim=(2, 3), keepdim=True))
        return out.flatten(1)
