"""SVHN, cropped digits (Netzer et al., 2011): 73,257 + 26,032 colour pictures, 32 x 32.

Read by torchvision, which checks the md5 of the official files. The "extra" part is not used.
"""

from __future__ import annotations

from pathlib import Path

import torch

from nni_robust.data._files import damaged, find, missing
from nni_robust.data._torchvision import import_torchvision
from nni_robust.data.images import ImageSet
from nni_robust.registry import datasets

__all__ = ["read_svhn"]


@datasets.register("svhn")
def read_svhn(root: Path, split: str) -> ImageSet:
    """SVHN from ``<root>/svhn`` (or `root` itself); `split` is ``"train"`` or ``"test"``.

    By default the pictures are cropped in training but not mirrored: they show digits. (Some
    papers do mirror them; set ``augment: [crop, flip]`` to follow those.)
    """
    import_torchvision()
    from torchvision.datasets import SVHN

    parts = {part: SVHN.split_list[part] for part in ("train", "test")}
    home = find([root / "svhn", root], [file for _, file, _ in parts.values()])
    if home is None:
        urls = " and ".join(url for url, _, _ in parts.values())
        wanted = "'train_32x32.mat' and 'test_32x32.mat'"
        raise missing("svhn", root, wanted, urls, root / "svhn", unpack=False)
    try:
        data = SVHN(str(home), split=split, download=False)
    except RuntimeError:
        url, file, _ = parts[split]
        raise damaged("svhn", home / file, url) from None
    names = [str(digit) for digit in range(10)]
    pictures = torch.from_numpy(data.data.copy())
    return ImageSet(pictures, torch.from_numpy(data.labels), names, augment=("crop",))
