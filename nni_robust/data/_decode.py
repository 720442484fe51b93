"""Picture files to uint8 arrays (by PIL), and lists of them on disk."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nni_robust.errors import UserError

__all__ = ["SUFFIXES", "Geometry", "decode", "list_classes", "list_files", "picture_size"]

#: What counts as a picture in a folder.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How pictures get their common size.

    Parameters
    ----------
    height, width
        Size of the result, in pixels.
    resize
        Length that the shorter side is first brought to (bilinear); then the middle is cut out.
        None: pictures must have the size already.
    """

    height: int
    width: int
    resize: int | None = None


def picture_size(path: str) -> tuple[int, int]:
    """(height, width) from a picture's header.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise UserError(f"cannot read picture '{path}': {e}") from None


def decode(path: str, geometry: Geometry, dice: random.Random | None = None) -> np.ndarray:
    """Read one picture.

    Parameters
    ----------
    path
        The file. Grey pictures are repeated to three channels, transparency is dropped.
    geometry
        Size of the result.
    dice
        Source of a random resized crop (a window of 8 to 100 % of the area, its sides in a ratio of
        3/4 to 4/3, brought to the size: Inception's augmentation, usual for ImageNet); None is
        none.

    Returns
    -------
    numpy.ndarray
        (H, W, 3), uint8.

    Raises
    ------
    UserError
        If the file is damaged, or its size is not the common one and nothing says how to resize.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise UserError(f"cannot read picture '{path}': {e}") from None
    size = (geometry.width, geometry.height)
    if dice is not None:
        window = _random_window(picture.width, picture.height, dice)
        picture = picture.resize(size, Image.Resampling.BILINEAR, box=window)
    elif geometry.resize is not None:
        picture = _fit(picture, geometry.resize, size)
    elif picture.size != size:
        raise UserError(
            f"picture '{path}' is {picture.height} x {picture.width} and others are "
            f"{geometry.height} x {geometry.width}; name one size, such as image-folder:<path>@64"
        )
    return np.asarray(picture)


def _fit(picture: Image.Image, resize: int, size: tuple[int, int]) -> Image.Image:
    """Shorter side to `resize`, then the middle window of `size` (width, height)."""
    scale = resize / min(picture.size)
    if scale != 1:
        new = [max(resize, round(side * scale)) for side in picture.size]
        picture = picture.resize((new[0], new[1]), Image.Resampling.BILINEAR)
    left, top = (picture.width - size[0]) // 2, (picture.height - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))


def _random_window(width: int, height: int, dice: random.Random) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random window; all of it where ten tries do not fit."""
    for _ in range(10):
        area = width * height * dice.uniform(0.08, 1)
        ratio = math.exp(dice.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = dice.randint(0, width - w), dice.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def list_classes(folder: Path) -> list[str]:
    """Sorted names of the class folders in `folder`.

    Raises
    ------
    UserError
        If there is none.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(
            f"'{folder}' holds no class folders; expected {folder.name}/<class>/<picture>"
        )
    return names


def list_files(folder: Path) -> list[str]:
    """Sorted paths of the picture files in `folder` and below."""
    return sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
