"""A data set without content, for experiments that look their results up: only its shape counts."""

from __future__ import annotations

from pathlib import Path

import torch

from nni_robust.data.images import ImageSet

__all__ = ["read_blank"]


def read_blank(root: Path, split: str) -> ImageSet:
    """Black pictures of 3 x 32 x 32, 20 of each of ten classes, in both splits.

    Parameters
    ----------
    root
        Not used.
    split
        ``"train"`` or ``"test"``.
    """
    labels = torch.arange(200) % 10
    pictures = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    return ImageSet(pictures, labels, [str(label) for label in range(10)], augment=())
