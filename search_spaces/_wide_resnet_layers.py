"""The blocks of wide residual networks.

Names of the state dict are those of the authors' code (zhichao-lu/robust-residual-network, commit
8c6d2c2), so that its checkpoints and RobustBench's fit. All convolutions are without bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._wide_resnet_config import Stage, WideResNetConfig

__all__ = ["BasicBlock", "RobustBlock", "SqueezeExcite", "StageBlocks", "make_norm"]


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel: (N, C, H, W) to the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        out = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return out.permute(0, 3, 1, 2)


def make_norm(name: str, channels: int) -> nn.Module:
    """A norm by name, see :data:`._wide_resnet_config.NORMALIZATIONS`.

    Group norm has groups of about 8 channels: ``channels // 8`` groups as in the authors' code, or
    the next smaller number that divides `channels` (where theirs fails).
    """
    if name == "GroupNorm":
        groups = max(channels // 8, 1)
        while channels % groups:
            groups -= 1
        return nn.GroupNorm(groups, channels)
    if name == "LayerNorm":
        return _ChannelNorm(channels)
    return nn.InstanceNorm2d(channels) if name == "InstanceNorm" else nn.BatchNorm2d(channels)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A strided 1x1 convolution, or None where the identity fits."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride))


class BasicBlock(nn.Module):
    """Twice (norm, activation, convolution), the pre-activation block of wide residual networks.

    (N, C_in, H, W) to (N, C, H / stride, W / stride), sides rounded up. Where the shape changes,
    the shortcut is a 1x1 convolution of the normalised input.

    Parameters
    ----------
    stage
        The stage that the block is in.
    inputs, stride
        Of this block.
    """

    def __init__(self, stage: Stage, inputs: int, stride: int) -> None:
        super().__init__()
        channels = stage.channels
        self.act = getattr(nn, stage.activation)()
        self.bn1 = make_norm(stage.normalization, inputs)
        self.conv1 = _conv(inputs, channels, stage.kernel_size, stride)
        self.bn2 = make_norm(stage.normalization, channels)
        self.conv2 = _conv(channels, channels, stage.kernel_size)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        result: Tensor = self.conv2(self.act(self.bn2(self.conv1(out)))) + shortcut
        return result


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in (0, 1) that depends on the means of all channels."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc(x.mean(dim=(2, 3)))
        return x * gate[:, :, None, None]


class RobustBlock(nn.Module):
    """Bottleneck with hierarchical convolutions and residual squeeze-excite (`RobustResBlock`).

    (N, C_in, H, W) to (N, 4C, H / stride, W / stride), sides rounded up. A 1x1 convolution makes
    `scales` slices; with stride 1, each slice's convolution also gets the result of the slice
    before; the last slice has no convolution. A second 1x1 convolution makes the 4C outputs, to
    which the shortcut and the squeeze-excite of the outputs are added.

    As in the authors' code, and unlike their figure, the first convolution takes the block's raw
    input unless `preact_fix` is on. In blocks without a convolution in the shortcut `bn1` then has
    no effect: it is not computed, and its parameters, kept for equal counts and names, never get
    a gradient (``DistributedDataParallel`` needs ``find_unused_parameters=True``).

    Parameters
    ----------
    config, stage
        The network, and the stage that the block is in.
    inputs, stride
        Of this block.
    """

    conv2: nn.Module
    bn3: nn.Module

    def __init__(self, config: WideResNetConfig, stage: Stage, inputs: int, stride: int) -> None:
        super().__init__()
        part = config.slice_channels(stage.channels)
        inner, outputs = part * config.scales, stage.out_channels
        self.scales, self.stride, self.preact_fix = config.scales, stride, config.preact_fix

        def conv() -> nn.Conv2d:
            return _conv(part, part, stage.kernel_size, stride, config.cardinality)

        def norm(channels: int) -> nn.Module:
            return make_norm(stage.normalization, channels)

        self.act = getattr(nn, stage.activation)()
        self.bn1 = norm(inputs)
        self.conv1 = _conv(inputs, inner, 1)
        self.bn2 = norm(inner)
        if config.scales == 1:
            self.conv2, self.bn3 = conv(), norm(part)
        else:
            self.conv2 = nn.ModuleList(conv() for _ in range(config.scales - 1))
            self.bn3 = nn.ModuleList(norm(part) for _ in range(config.scales - 1))
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)
        self.conv3 = _conv(inner, outputs, 1)
        self.se_bn = norm(outputs)
        self.se = SqueezeExcite(outputs, config.se_reduction)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        start = shortcut = x
        if self.preact_fix or self.shortcut is not None:
            out = self.act(self.bn1(x))
            start = out if self.preact_fix else x
            shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv3(self._hierarchy(self.act(self.bn2(self.conv1(start)))))
        result: Tensor = out + shortcut + self.se(self.se_bn(out))
        return result

    def _hierarchy(self, x: Tensor) -> Tensor:
        """The slices' convolutions: channels stay, sides are divided by the stride."""
        if not isinstance(self.conv2, nn.ModuleList) or not isinstance(self.bn3, nn.ModuleList):
            single: Tensor = self.act(self.bn3(self.conv2(x)))
            return single
        *slices, last = x.chunk(self.scales, dim=1)
        done: list[Tensor] = []
        for conv, norm, part in zip(self.conv2, self.bn3, slices, strict=True):
            source = part + done[-1] if done and self.stride == 1 else part
            done.append(self.act(norm(conv(source))))
        return torch.cat([*done, self.pool(last)], dim=1)


class StageBlocks(nn.Module):
    """The blocks of one stage, one after the other, under the name ``layer``."""

    def __init__(self, config: WideResNetConfig, stage: Stage) -> None:
        super().__init__()

        def block(index: int) -> nn.Module:
            inputs = stage.out_channels if index else stage.in_channels
            stride = 1 if index else stage.stride
            if stage.block == "robust":
                return RobustBlock(config, stage, inputs, stride)
            return BasicBlock(stage, inputs, stride)

        self.layer = nn.Sequential(*(block(index) for index in range(stage.depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out
