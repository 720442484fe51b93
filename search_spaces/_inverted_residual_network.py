"""Inverted-residual networks: plain ones of given widths, and the masked one of all widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.relaxation import SharedDraw

from ._inverted_residual_config import HEAD_EXPANSION, InvertedResidualConfig
from ._inverted_residual_layers import ConvUnit, Head, InvertedResidual, WidthMask

__all__ = ["InvertedResidualBackbone", "InvertedResidualNet", "masked", "prefixes"]


class InvertedResidualBackbone(nn.Module):
    """Stem, stages of blocks, head and classifier."""

    config: InvertedResidualConfig
    mu: Tensor
    sigma: Tensor

    def _assemble(self, config: InvertedResidualConfig, widths: Mapping[str, int]) -> None:
        """Add the layers, with fresh weights."""
        self.config = config
        for name, values in zip(("mu", "sigma"), config.mean_and_std(), strict=False):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        self.stem = ConvUnit(config, 3, config.stem_channels, 3, config.stem_stride)
        stages: list[nn.Module] = []
        for blocks in config.blocks():
            layers: list[nn.Module] = []
            for block in blocks:
                inputs = block.inputs if block.source is None else widths[block.source]
                layers.append(InvertedResidual(config, block, inputs, widths[block.label]))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        features = widths[block.label]
        self.head = None if config.head_channels is None else Head(config, features)
        self.fc = nn.Linear(config.head_channels or features, config.num_classes)
        for module in self.modules():
            # On the meta device there is nothing to fill, and filling it would take longest.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, 0.0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, 3, H, W) of any size, float in [0, 1]."""
        if self.config.normalize is not None:
            x = (x - self.mu) / self.sigma
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        features = x.mean(dim=(2, 3)) if self.head is None else self.head(x)
        logits: Tensor = self.fc(features)
        return logits

    def tap_points(self) -> list[str]:
        """Paths of the modules whose outputs RNAS-CL's attention maps are taken from, in order.

        They are the conv units, each behind its norm and activation, before the shortcut and
        before a mask of widths: ``stem``, then ``stages.0.0.pw``, ``.dw``, ``.pwl`` of every block,
        and of the ImageNet template ``head.pw`` and ``head.project``. The same for all networks of
        a space, plain or relaxed. No later layer works in place on these outputs.
        """
        paths = ["stem"]
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, nn.Sequential)
            for index, block in enumerate(stage):
                paths += [
                    f"stages.{number}.{index}.{unit}"
                    for unit in ("pw", "dw", "pwl")
                    if getattr(block, unit) is not None
                ]
        return paths if self.head is None else [*paths, "head.pw", "head.project"]


class InvertedResidualNet(InvertedResidualBackbone):
    """A plain network, without NNI inside.

    Parameters
    ----------
    config
        The space's networks.
    widths
        Width of every block's output, by label.
    """

    def __init__(self, config: InvertedResidualConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        self._assemble(config, widths)


def masked(config: InvertedResidualConfig, draw: SharedDraw) -> InvertedResidualNet:
    """The network at its largest widths, its channels masked by the weights in `draw`.

    Its state dict is that of the plain network of the largest widths.
    """
    choices = config.choices()
    network = InvertedResidualNet(config, {label: widths[0] for label, widths in choices.items()})
    for blocks, stage in zip(config.blocks(), network.stages, strict=True):
        assert isinstance(stage, nn.Sequential)
        for block, layer in zip(blocks, stage, strict=True):
            assert isinstance(layer, InvertedResidual)
            layer.mask = WidthMask(draw, block.label, choices[block.label])
            if block.source is not None and not config.keeps_inner(block):
                widths = choices[block.source]
                layer.inner_mask = WidthMask(draw, block.source, widths, block.expansion)
    if network.head is not None and config.mid == "input":
        network.head.inner_mask = WidthMask(draw, block.label, choices[block.label], HEAD_EXPANSION)
    return network


def prefixes(state: Mapping[str, Any], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the first channels of every tensor, as many as the tensor of that name in `like`.

    Raises
    ------
    KeyError
        If a tensor is missing.
    ValueError
        Naming a tensor that has too few channels.
    """
    result: dict[str, Tensor] = {}
    for name, own in like.items():
        tensor: Tensor = state[name]
        if tensor.dim() != own.dim() or any(
            size > there for size, there in zip(own.shape, tensor.shape, strict=True)
        ):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(own.shape)}")
        result[name] = tensor[tuple(slice(size) for size in own.shape)].detach().clone()
    return result
