"""Weather: snow, frost, fog and bright light."""

from __future__ import annotations

import torch
from torch import Tensor

from nni_robust.corruptions import _filters
from nni_robust.corruptions._draws import Draws

__all__ = ["brightness", "fog", "frost", "plasma", "snow"]


def brightness(x: Tensor, more: float, draws: Draws) -> Tensor:
    """More value in HSV: the largest channel rises by so much, to 1 at most, the others with it."""
    value = x.amax(1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp(min=1e-12)), raised)


def fog(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """A cloud over the picture, which keeps its largest value."""
    thickness, decay = c
    height, width = x.shape[2:]
    cloud = plasma(max(height, width), decay, draws)[:, None, :height, :width]
    most = x.flatten(1).amax(1).view(-1, 1, 1, 1)
    return (x + thickness * cloud) * most / (most + thickness)


def frost(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """Ice on the lens: a crystal pattern, drawn for each picture.

    CIFAR-10-C and ImageNet-C add parts of six photographs of frost here, which nobody may pass
    on; this pattern has their mean colour and contrast, and is another corruption.
    """
    keep, share = c
    height, width = x.shape[2:]
    side = max(height, width)
    wide, fine = (plasma(side, decay, draws)[:, None, :height, :width] for decay in (1.6, 1.25))
    pattern = wide - (2 * fine - 1).abs()  # ridges of the fine one are needles
    pattern = pattern - pattern.mean((2, 3), keepdim=True)
    pattern = pattern / pattern.std((2, 3), correction=0, keepdim=True).clamp(min=1e-6)
    level = draws.uniform(1, 1, 1, low=0.47, high=0.82)
    tint = torch.tensor([-0.07, 0.01, 0.06], device=x.device).view(1, 3, 1, 1)
    ice = level + 0.11 * pattern + (tint if x.shape[1] == 3 else 0)
    return keep * x + share * ice.clamp(0, 1)


def snow(x: Tensor, c: tuple[float, ...], draws: Draws) -> Tensor:
    """Flakes that fall, smeared along their way, over a picture with less colour."""
    mean, deviation, zoom, threshold, radius, sigma, keep = c
    flakes = _filters.zoomed(mean + deviation * draws.normal(1, *x.shape[2:]), (zoom,))
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    flakes = _filters.motion(flakes, radius, sigma, draws.uniform(low=-135, high=-45))
    pale = torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return keep * x + (1 - keep) * pale + flakes + flakes.flip(2, 3)


def _grey(x: Tensor) -> Tensor:
    """(N, 1, H, W): luma of three channels, else the mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)
    return (weights * x).sum(1, keepdim=True)


def plasma(side: int, decay: float, draws: Draws) -> Tensor:
    """(N, S, S), in [0, 1]: clouds by the diamond-square algorithm; S is a power of 2, S >= side.

    Each octave's deviation is 1 / decay² of the one above (the published generator applies its
    factor twice).
    """
    size = 1 << max(side - 1, 1).bit_length()
    first = draws.uniform(1, 1) * 0
    cloud = first.expand(-1, size, size).clone()
    step, rough = size, 1.0
    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        sides = corners.shape[1]

        def wobble(sides: int = sides, rough: float = rough) -> Tensor:
            return rough * draws.uniform(sides, sides, low=-1, high=1)

        pairs = corners + corners.roll(-1, 1)
        middles = (pairs + pairs.roll(-1, 2)) / 4 + wobble()
        cloud[:, half::step, half::step] = middles
        above = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        cloud[:, ::step, half::step] = above / 4 + wobble()
        left = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        cloud[:, half::step, ::step] = left / 4 + wobble()
        step, rough = half, rough / decay**2
    cloud = cloud - cloud.amin((1, 2), keepdim=True)
    return cloud / cloud.amax((1, 2), keepdim=True).clamp(min=1e-12)
