"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009): 50,000 + 10,000 colour pictures, 32 x 32.

Read by torchvision, which checks the md5 of the official files before it opens them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_robust.data._files import damaged, find, missing
from nni_robust.data._torchvision import import_torchvision
from nni_robust.data.images import ImageSet
from nni_robust.registry import datasets

__all__ = ["read_cifar10", "read_cifar100"]


@datasets.register("cifar10")
def read_cifar10(root: Path, split: str) -> ImageSet:
    """CIFAR-10 from ``<root>/cifar-10-batches-py``; `split` is ``"train"`` or ``"test"``."""
    return _read("cifar10", "CIFAR10", root, split)


@datasets.register("cifar100")
def read_cifar100(root: Path, split: str) -> ImageSet:
    """CIFAR-100, fine labels, from ``<root>/cifar-100-python``; `split` as for CIFAR-10."""
    return _read("cifar100", "CIFAR100", root, split)


def _read(name: str, reader: str, root: Path, split: str) -> ImageSet:
    import_torchvision()
    from torchvision import datasets as torchvision_datasets

    kind: Any = getattr(torchvision_datasets, reader)
    files = [f"{kind.base_folder}/{file}" for file, _ in kind.train_list + kind.test_list]
    files.append(f"{kind.base_folder}/{kind.meta['filename']}")
    home = find([root], files)
    if home is None:
        raise missing(name, root, f"a folder '{kind.base_folder}'", kind.url, root, unpack=True)
    try:
        data = kind(str(home), train=split == "train", download=False)
    except RuntimeError:
        raise damaged(name, home / kind.base_folder, kind.url) from None
    pictures = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return ImageSet(pictures, torch.tensor(data.targets), data.classes, augment=("crop", "flip"))
