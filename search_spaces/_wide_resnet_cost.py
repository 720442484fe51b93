"""What a wide residual network costs, in closed form: exactly the counts of the built network.

A convolution has ``out_h * out_w * k * k * in * out / groups`` multiply-accumulates; norms,
activations, pooling and the scaling by squeeze-excite are not counted. A block with stride s makes
``ceil(side / s)`` of a side.
"""

from __future__ import annotations

from collections.abc import Sequence

from nni_robust.cost import Cost
from nni_robust.errors import UserError

from ._wide_resnet_config import Stage, WideResNetConfig

__all__ = ["network_cost"]


def network_cost(config: WideResNetConfig, input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
    """Trainable parameters, and multiply-accumulates for one picture.

    Parameters
    ----------
    config
        The network.
    input_shape
        (3, H, W) in pixels.

    Raises
    ------
    UserError
        If the network cannot take such pictures.
    """
    if len(input_shape) != 3 or input_shape[0] != 3 or min(input_shape) < 1:
        raise UserError(
            f"wide residual networks take pictures of shape (3, H, W), not {tuple(input_shape)}"
        )
    height, width = (-(-side // config.stem_stride) for side in input_shape[1:])
    params = 27 * config.stem_channels
    macs = params * height * width
    stages = config.stages()
    for stage in stages:
        before = height * width
        height, width = (-(-side // stage.stride) for side in (height, width))
        first = _block(config, stage, stage.in_channels, stage.stride, before, height * width)
        # All blocks but the first are alike.
        other = _block(config, stage, stage.out_channels, 1, height * width, height * width)
        params += first[0] + (stage.depth - 1) * other[0]
        macs += first[1] + (stage.depth - 1) * other[1]
    last = stages[-1]
    head = last.out_channels * config.num_classes
    norm = _norm(last.normalization, last.out_channels)
    return Cost(params=params + norm + head + config.num_classes, macs=macs + head)


def _norm(name: str, channels: int) -> int:
    """Parameters of a norm: a weight and a bias per channel, except in instance norm."""
    return 0 if name == "InstanceNorm" else 2 * channels


def _block(
    config: WideResNetConfig, stage: Stage, inputs: int, stride: int, before: int, after: int
) -> tuple[int, int]:
    """Parameters and MACs of a block.

    Parameters
    ----------
    config, stage
        The network, and which of its stages.
    inputs, stride
        Input channels and stride of the block.
    before, after
        Pixels of its input and of its output.
    """
    area = stage.kernel_size**2
    channels, outputs = stage.channels, stage.out_channels
    norms, linear, entry = [inputs], 0, 0
    if stage.block == "basic":
        norms.append(channels)
        convs = area * (inputs * channels + channels**2)
    else:
        part = config.slice_channels(channels)
        inner = part * config.scales
        parts = max(config.scales - 1, 1)  # the last slice of several has no convolution
        norms += [inner, *[part] * parts, outputs]
        entry = inputs * inner  # at the input's resolution
        convs = parts * area * part * (part // config.cardinality) + inner * outputs
        linear = 2 * outputs * (outputs // config.se_reduction)
    if stride > 1 or inputs != outputs:
        convs += inputs * outputs
    params = entry + convs + linear + sum(_norm(stage.normalization, n) for n in norms)
    return params, entry * before + convs * after + linear
