"""Blurs, zooms and warps of whole batches.

Whatever is linear and acts on rows and columns alike is one matrix for each side, which scipy or
Pillow is asked for once: their results to rounding, at the speed of two matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

__all__ = [
    "bilinear",
    "blurred",
    "convolved",
    "mirrored",
    "motion",
    "pixelated",
    "symmetric",
    "zoomed",
]


def blurred(
    x: Tensor, sigma: float, mode: Literal["nearest", "reflect"] = "nearest", truncate: float = 4.0
) -> Tensor:
    """(..., H, W) blurred by a Gaussian of that standard deviation in pixels, as scipy does it."""
    return _both(x, lambda n: _gaussian(n, float(sigma), mode, truncate))


def zoomed(x: Tensor, factors: tuple[float, ...]) -> Tensor:
    """The mean of (..., H, W) magnified by each factor >= 1, in the middle, bilinearly."""
    out = torch.zeros_like(x)
    for factor in factors:
        out += _both(x, functools.partial(_zoom, factor=factor))
    return out / len(factors)


def pixelated(x: Tensor, share: float) -> Tensor:
    """(..., H, W) averaged over boxes to that share of the side, and spread again, as Pillow."""
    return _both(x, lambda n: _boxes(n, share))


def _both(x: Tensor, matrix: Callable[[int], np.ndarray]) -> Tensor:
    """A matrix for the rows, one for the columns."""
    down, across = (torch.tensor(matrix(n), device=x.device, dtype=x.dtype) for n in x.shape[-2:])
    return down @ x @ across.T


@functools.lru_cache(64)
def _gaussian(n: int, sigma: float, mode: str, truncate: float) -> np.ndarray:
    if sigma < 1e-15:
        return np.eye(n)
    return np.asarray(
        ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, mode=mode, truncate=truncate)
    )


@functools.lru_cache(256)
def _zoom(n: int, factor: float) -> np.ndarray:
    """Cut out the middle, stretch it by the factor, cut off what is too much."""
    crop = int(np.ceil(n / factor))
    top = (n - crop) // 2
    stretched = ndimage.zoom(np.eye(crop), (factor, 1), order=1)
    trim = (len(stretched) - n) // 2
    whole = np.zeros((n, n))
    whole[:, top : top + crop] = stretched[trim : trim + n]
    return whole


@functools.lru_cache(64)
def _boxes(n: int, share: float) -> np.ndarray:
    few = max(int(n * share), 1)
    unit = Image.fromarray(np.eye(n, dtype=np.float32))
    small = unit.resize((n, few), Image.Resampling.BOX)
    return np.asarray(small.resize((n, n), Image.Resampling.BOX))


def mirrored(index: Tensor, n: int) -> Tensor:
    """Places in an edge of n pixels continued as ``c b | a b c | b a``, OpenCV's default."""
    if n == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (n - 1))
    return torch.minimum(index, 2 * (n - 1) - index)


def symmetric(index: Tensor, n: int) -> Tensor:
    """Places in an edge of n pixels continued as ``b a | a b c | c b``, scipy's ``reflect``."""
    index = index.remainder(2 * n)
    return torch.minimum(index, 2 * n - 1 - index)


def convolved(x: Tensor, kernel: np.ndarray) -> Tensor:
    """(N, C, H, W) correlated with a (2r + 1, 2r + 1) kernel, edges mirrored."""
    r = len(kernel) // 2
    weight = torch.from_numpy(kernel).to(x.device, x.dtype)
    rows, cols = (
        mirrored(torch.arange(-r, n + r, device=x.device), n) for n in (x.shape[2], x.shape[3])
    )
    padded = x[:, :, rows][:, :, :, cols]
    flat = padded.flatten(0, 1).unsqueeze(1)
    return F.conv2d(flat, weight[None, None]).view_as(x)


def motion(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """(N, C, H, W) smeared in one direction for each picture, edges repeated.

    The weights are those of one half of a Gaussian over 2 radius + 1 pixels; a pixel on the way is
    the nearest one (ImageMagick's motion blur).
    """
    steps = torch.arange(int(2 * radius + 1), device=x.device, dtype=torch.float64)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).float()
    angle = torch.deg2rad(degrees.double()).view(-1, 1)
    down = torch.ceil(steps * torch.sin(angle) - 0.5).long()  # (N, steps)
    right = torch.ceil(steps * torch.cos(angle) - 0.5).long()
    height, width = x.shape[2:]
    rows, cols = (torch.arange(n, device=x.device) for n in (height, width))
    out = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        r = (rows + down[:, step : step + 1]).clamp(0, height - 1)
        c = (cols + right[:, step : step + 1]).clamp(0, width - 1)
        flat = (r.unsqueeze(2) * width + c.unsqueeze(1)).flatten(1)
        out += weight * _taken(x, flat)
    return out


def bilinear(
    x: Tensor, rows: Tensor, cols: Tensor, edge: Literal["mirrored", "symmetric"]
) -> Tensor:
    """(N, C, H, W) read at places (N, H, W) between the pixels, linearly.

    Parameters
    ----------
    rows, cols
        Where each pixel comes from, in pixels from the first one's middle.
    edge
        How the picture goes on beyond its edges.
    """
    fold = mirrored if edge == "mirrored" else symmetric
    height, width = x.shape[2:]
    top, left = rows.floor(), cols.floor()
    below, right = (rows - top).flatten(1).unsqueeze(1), (cols - left).flatten(1).unsqueeze(1)
    out = torch.zeros_like(x).flatten(2)
    for down, vertical in ((0, 1 - below), (1, below)):
        for across, horizontal in ((0, 1 - right), (1, right)):
            r = fold(top.long() + down, height)
            c = fold(left.long() + across, width)
            found = _taken(x, (r * width + c).flatten(1)).flatten(2)
            out += vertical * horizontal * found
    return out.view_as(x)


def _taken(x: Tensor, flat: Tensor) -> Tensor:
    """Pixels of (N, C, H, W) by places (N, H·W) in each picture."""
    channels = flat.unsqueeze(1).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, channels).view_as(x)
