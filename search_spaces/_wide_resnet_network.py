"""The plain wide residual network of a config; what it is and where from: `wide_resnet`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ._wide_resnet_config import WideResNetConfig
from ._wide_resnet_layers import StageBlocks, make_norm

__all__ = ["Backbone", "WideResNet"]


class Backbone(nn.Module):
    """Stem, three stages and classifier."""

    config: WideResNetConfig
    mu: Tensor
    sigma: Tensor
    #: The published weights lack the constants of the input normalisation.
    constant_buffers: tuple[str, ...] = ()

    def _assemble(self, config: WideResNetConfig) -> None:
        """Add the layers, with fresh weights."""
        self.config = config
        for name, values in zip(("mu", "sigma"), config.mean_and_std(), strict=False):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
            self.constant_buffers += (name,)
        self.stem_conv = nn.Conv2d(
            3, config.stem_channels, 3, config.stem_stride, padding=1, bias=False
        )
        stages = config.stages()
        self.blocks = nn.ModuleList(StageBlocks(config, stage) for stage in stages)
        last = stages[-1]
        self.norm1 = make_norm(last.normalization, last.out_channels)
        self.act1 = getattr(nn, last.activation)()
        self.fc = nn.Linear(last.out_channels, config.num_classes)
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            # On the meta device there is nothing to fill, and filling it would take longest.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                fan_out = math.prod(module.kernel_size) * module.out_channels  # groups disregarded
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, 3, H, W) of any size, float in [0, 1]."""
        if self.config.normalize is not None:
            x = (x - self.mu) / self.sigma
        x = self.stem_conv(x)
        for stage in self.blocks:
            x = stage(x)
        logits: Tensor = self.fc(self.act1(self.norm1(x)).mean(dim=(2, 3)))
        return logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Keep our own constants where the file has none."""
        for name in self.constant_buffers:
            state_dict.setdefault(prefix + name, self._buffers[name])
        super()._load_from_state_dict(state_dict, prefix, *args)


class WideResNet(Backbone):
    """A plain wide residual network, without NNI inside.

    Parameters
    ----------
    config
        What to build, such as ``WideResNetConfig(depths=[14, 14, 7], widths=[5, 7, 3])``.
    """

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__()
        self._assemble(config)
