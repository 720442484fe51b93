"""What a network costs in closed form, for fixed widths and for a distribution over widths.

A cost is linear in the width of each block's output, its square, and products of neighbouring
blocks' widths. So one formula serves both: of the numbers themselves, and of their expectations,
which are exact because the choices of different blocks are independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nni_robust.errors import UserError

from ._inverted_residual_config import HEAD_EXPANSION, InvertedResidualConfig

__all__ = ["Width", "network_cost", "released_cost"]


@dataclasses.dataclass(frozen=True)
class Width:
    """A width and its square: integers, or expectations (tensors of one number)."""

    mean: Any
    square: Any

    @classmethod
    def of(cls, width: int) -> Width:
        return cls(width, width * width)


def network_cost(
    config: InvertedResidualConfig, widths: Mapping[str, Width], input_shape: Sequence[int]
) -> tuple[Any, Any]:
    """Trainable parameters, and multiply-accumulates for one picture.

    Parameters
    ----------
    config
        The space's networks.
    widths
        Width of every block's output, by label.
    input_shape
        (3, H, W) in pixels.

    Raises
    ------
    UserError
        If the network cannot take such pictures.
    """
    sides = _stem_sides(config, input_shape)
    before = sides[0] * sides[1]
    stem = 27 * config.stem_channels
    params: Any = stem + 3 * config.stem_channels  # bias, and weight and bias of the norm
    macs: Any = stem * before
    for block in (block for stage in config.blocks() for block in stage):
        sides = (_strided(sides[0], block.stride), _strided(sides[1], block.stride))
        after = sides[0] * sides[1]
        inputs = Width.of(block.inputs) if block.source is None else widths[block.source]
        output = widths[block.label].mean
        # Inner width, and inputs times inner width: an expectation of a square where both vary.
        if config.keeps_inner(block):
            inner: Any = block.expansion * block.inputs
            square = inputs.mean * inner
        else:
            inner, square = block.expansion * inputs.mean, block.expansion * inputs.square
        if block.expansion > 1:
            params = params + square + 3 * inner
            macs = macs + square * before
        params = params + 12 * inner + inner * output + 3 * output
        macs = macs + (9 * inner + inner * output) * after
        before = after
    last = widths[config.blocks()[-1][-1].label]
    features = last.mean
    if config.head_channels is not None:
        if config.mid == "full":
            inner = HEAD_EXPANSION * config.stages[-1].widths[0]
            square = last.mean * inner
        else:
            inner, square = HEAD_EXPANSION * last.mean, HEAD_EXPANSION * last.square
        features = config.head_channels
        params = params + square + 3 * inner + inner * features + features
        macs = macs + square * before + inner * features
    return params + (features + 1) * config.num_classes, macs + features * config.num_classes


def released_cost(
    config: InvertedResidualConfig, widths: Mapping[str, Width], input_shape: Sequence[int]
) -> Any:
    """Cost of the released search code, which is no count of multiply-accumulates.

    It takes a block's inner width from its output, the depthwise convolution as a dense one, the
    output's resolution for all of a block, and expansion 1 for the first stage; stem, head and
    classifier are left out.

    Raises
    ------
    UserError
        As :func:`network_cost`.
    """
    sides = _stem_sides(config, input_shape)
    total: Any = 0
    for number, stage in enumerate(config.blocks()):
        for block in stage:
            sides = (_strided(sides[0], block.stride), _strided(sides[1], block.stride))
            inputs = block.inputs if block.source is None else widths[block.source].mean
            output = widths[block.label]
            expansion = block.expansion if number else 1
            inner = expansion * output.mean
            squares = 9 * expansion**2 * output.square + expansion * output.square
            total = total + sides[0] * sides[1] * (inputs * inner + squares)
    return total


def _stem_sides(config: InvertedResidualConfig, input_shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of the stem's output."""
    if len(input_shape) != 3 or input_shape[0] != 3 or min(input_shape) < 1:
        raise UserError(
            f"inverted-residual networks take pictures of shape (3, H, W), not {tuple(input_shape)}"
        )
    height, width = input_shape[1:]
    return _strided(height, config.stem_stride), _strided(width, config.stem_stride)


def _strided(side: int, stride: int) -> int:
    return -(-side // stride)
