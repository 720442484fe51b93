"""The embedded default: the 1,797 handwritten digits inside scikit-learn (from UCI "optdigits").

Real pictures that every installation has: 8 x 8 pixels, 17 grey levels, ten classes. They are
given with three equal channels, so that any network for colour pictures takes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nni_robust.data.images import ImageSet
from nni_robust.data.seeding import stratified_order
from nni_robust.registry import datasets

__all__ = ["TEST_PICTURES", "read_digits"]

#: scikit-learn has no test split of its own; these many pictures are ours, always the same.
TEST_PICTURES = 360


@datasets.register("digits")
def read_digits(root: Path, split: str) -> ImageSet:
    """The digits.

    Grey level v in 0 … 16 becomes the byte round(v * 255 / 16), that is v/16 of white to within
    1/510.

    Parameters
    ----------
    root
        Not used.
    split
        ``"train"`` (1,437 pictures) or ``"test"`` (360); stratified and independent of any seed.
    """
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    grey = np.rint(levels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    digits = ImageSet(
        torch.from_numpy(grey).repeat(1, 3, 1, 1),
        torch.from_numpy(labels.astype(np.int64)),
        [str(digit) for digit in range(10)],
        augment=("crop",),
    )
    order = stratified_order(digits.labels, 0, "digits", "test")
    return digits.take(order[:TEST_PICTURES] if split == "test" else order[TEST_PICTURES:])
