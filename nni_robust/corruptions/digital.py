"""What cameras and files do: contrast, elastic maps, pixels, JPEG, and saturation."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nni_robust.corruptions import _filters
from nni_robust.corruptions._draws import Draws
from nni_robust.errors import UserError

__all__ = ["contrast", "elastic_transform", "jpeg_compression", "pixelate", "saturate"]


def contrast(x: Tensor, left: float, draws: Draws) -> Tensor:
    """Each channel nearer to its mean over the picture."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + left * (x - mean)


def pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Fewer, larger pixels."""
    return _filters.pixelated(x, share)


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """Through a JPEG file of that quality, by Pillow, each picture for itself.

    Raises
    ------
    UserError
        If the pictures have neither one nor three channels.
    """
    if x.shape[1] not in (1, 3):
        raise UserError(f"jpeg_compression takes 1 or 3 channels, not {x.shape[1]}")
    pictures = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = np.stack([_through_jpeg(picture, quality) for picture in pictures])
    return torch.from_numpy(found).to(x.device).permute(0, 3, 1, 2).to(x.dtype) / 255


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(
        file, "JPEG", quality=quality
    )
    with Image.open(file) as image:
        return np.asarray(image).reshape(picture.shape)


def saturate(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """Another saturation in HSV; one that was 0 gains the hue 0, red.

    Pictures of other than three channels have no hue, and stay as they are.
    """
    if x.shape[1] != 3:
        return x
    factor, more = c
    value = x.amax(1, keepdim=True)
    below = value - x  # how far each channel lies below the largest: value · saturation · share
    most = below.amax(1, keepdim=True)
    share = below / most.clamp(min=1e-12)
    red = torch.tensor([0.0, 1.0, 1.0], device=x.device).view(1, 3, 1, 1)
    share = torch.where(most > 0, share, red)
    saturation = torch.where(value > 0, most / value.clamp(min=1e-12), 0)
    return value * (1 - (saturation * factor + more).clamp(0, 1) * share)


def elastic_transform(x: Tensor, c: tuple[float, float, float], draws: Draws) -> Tensor:
    """Small regions stretched: an affine map that moves three points, then smooth displacements."""
    size, smooth, shake = (min(x.shape[2:]) * length for length in c)
    x = _affine(x, shake, draws)
    if size == 0:
        return x
    height, width = x.shape[2:]
    down, right = (
        size
        * _filters.blurred(draws.uniform(height, width, low=-1, high=1), smooth, "reflect", 3.0)
        for _ in range(2)
    )
    rows = torch.arange(height, device=x.device).view(1, -1, 1) + down
    cols = torch.arange(width, device=x.device).view(1, 1, -1) + right
    return _filters.bilinear(x, rows, cols, "symmetric")


def _affine(x: Tensor, shake: float, draws: Draws) -> Tensor:
    """The affine map under which three points around the middle move by up to so many pixels."""
    height, width = x.shape[2:]
    a, b, reach = width // 2, height // 2, max(min(height, width) // 3, 1)
    points = [[a + reach, b + reach], [a + reach, b - reach], [a - reach, b - reach]]
    before = torch.tensor(points, device=x.device, dtype=torch.float64)  # (3, 2), as (column, row)
    after = before + draws.uniform(3, 2, low=-shake, high=shake).double()
    ones = torch.ones(len(x), 3, 1, device=x.device, dtype=torch.float64)
    # What leads back: from the places after to those before, (N, 3, 2).
    back = torch.linalg.solve(torch.cat([after, ones], 2), before.expand_as(after))
    r, c = torch.meshgrid(
        torch.arange(height, device=x.device, dtype=torch.float64),
        torch.arange(width, device=x.device, dtype=torch.float64),
        indexing="ij",
    )
    found = torch.stack([c, r, torch.ones_like(r)], 2) @ back.unsqueeze(1)  # (N, H, W, 2)
    return _filters.bilinear(x, found[..., 1].float(), found[..., 0].float(), "mirrored")
