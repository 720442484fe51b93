"""What a network costs: trainable parameters and multiply-accumulates (MACs, never "FLOPs")."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cost", "measure_cost"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a network.

    Parameters
    ----------
    params
        Number of trainable parameters.
    macs
        Multiply-accumulates of the convolutions and matrix products (linear layers among them) for
        one picture. Papers print this number as "FLOPs" or print twice of it.
    """

    params: int
    macs: int


def measure_cost(model: nn.Module, input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
    """Count by running the network once on an empty picture.

    Parameters
    ----------
    model
        Any network. Its weights, buffers and train/eval flags are left as they are. A network on
        the meta device is counted without computing anything.
    input_shape
        (C, H, W) of one picture, in pixels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    picture = torch.zeros(1, *input_shape, dtype=weight.dtype, device=weight.device)
    flags = [(module, module.training) for module in model.modules()]
    counter = FlopCounterMode(display=False)
    model.eval()
    try:
        with torch.no_grad(), counter:
            model(picture)
    finally:
        for module, training in flags:
            module.training = training
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Cost(params=params, macs=counter.get_total_flops() // 2)
