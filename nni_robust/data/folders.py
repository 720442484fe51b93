"""Data sets that are folders of picture files: Tiny-ImageNet, ImageNet and your own.

Each is a list of files first; only the pictures that a split keeps are decoded.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from nni_robust.data._decode import Geometry, list_classes, list_files, picture_size
from nni_robust.data._files import missing
from nni_robust.data.augment import RESIZED_CROP
from nni_robust.data.streamed import StreamedImages
from nni_robust.errors import UserError
from nni_robust.registry import datasets

__all__ = ["read_image_folder", "read_imagenet", "read_tiny_imagenet"]

TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
IMAGENET_URL = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"


@datasets.register("image-folder")
def read_image_folder(root: Path, split: str) -> StreamedImages:
    """Pictures in class folders: ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``).

    All pictures must have one size, or `root` ends with a size: of ``image-folder:flowers@64`` each
    picture's shorter side is brought to 64 pixels and the middle 64 x 64 are used.

    Parameters
    ----------
    root
        The folder.
    split
        ``"train"`` or ``"test"``.

    Raises
    ------
    UserError
        If the folder, one of its parts or a class's pictures are missing.
    """
    root, size = _split_size(root)
    if not root.is_dir():
        raise UserError(f"data set 'image-folder:{root}': there is no folder '{root}'")
    return _read_parts(f"image-folder:{root}", root, split, size, ("crop", "flip"))


@datasets.register("imagenet")
def read_imagenet(root: Path, split: str) -> StreamedImages:
    """ImageNet (ILSVRC 2012) from ``<root>/imagenet/{train,val}/<wnid>/*.JPEG``.

    The official validation pictures are the test split. They are resized to 256 and the middle
    224 x 224 are used; in training a random resized crop and a flip.
    """
    home = root / "imagenet"
    if not (home / "train").is_dir() or not (home / "val").is_dir():
        wanted = "a folder 'imagenet' (train/<wnid>/*.JPEG and val/<wnid>/*.JPEG)"
        raise missing("imagenet", root, wanted, IMAGENET_URL, home, unpack=True)
    geometry = Geometry(224, 224, resize=256)
    return _read_parts("imagenet", home, split, geometry, (RESIZED_CROP, "flip"))


@datasets.register("tiny-imagenet")
def read_tiny_imagenet(root: Path, split: str) -> StreamedImages:
    """Tiny-ImageNet (200 classes, 64 x 64) from ``<root>/tiny-imagenet-200``, as it is distributed.

    Its validation pictures are the test split, because the labels of its test pictures are not
    public.
    """
    home = root / "tiny-imagenet-200"
    annotations = home / "val" / "val_annotations.txt"
    if not (home / "train").is_dir() or not annotations.is_file():
        wanted = "a folder 'tiny-imagenet-200'"
        raise missing("tiny-imagenet", root, wanted, TINY_URL, root, unpack=True)
    wnids = list_classes(home / "train")
    if split == "train":
        files, labels = _class_folders("tiny-imagenet", home / "train", wnids)
    else:
        number = {wnid: label for label, wnid in enumerate(wnids)}
        files, labels = [], []
        for line in annotations.read_text(encoding="utf-8").splitlines():
            file, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in number:
                raise UserError(
                    f"data set 'tiny-imagenet': '{annotations}' names class '{wnid}', which has no "
                    f"folder in '{home / 'train'}'"
                )
            files.append(str(home / "val" / "images" / file))
            labels.append(number[wnid])
    names = _words(home / "words.txt", wnids)
    return StreamedImages(files, torch.tensor(labels), names, Geometry(64, 64), ("crop", "flip"))


def _read_parts(
    name: str, root: Path, split: str, geometry: Geometry | None, augment: tuple[str, ...]
) -> StreamedImages:
    parts = {"train": root / "train"}
    parts["test"] = next((p for p in (root / "test", root / "val") if p.is_dir()), root / "test")
    if not parts["train"].is_dir():
        raise UserError(f"data set '{name}': there is no folder '{parts['train']}/<class>'")
    if not parts["test"].is_dir():
        raise UserError(
            f"data set '{name}': there is no test split; expected '{root}/test/<class>' or "
            f"'{root}/val/<class>' beside '{root}/train'; a search must not see the test pictures"
        )
    names = list_classes(parts["train"])
    strange = sorted(set(list_classes(parts["test"])) - set(names))
    if strange:
        raise UserError(
            f"data set '{name}': class '{strange[0]}' is in '{parts['test']}' "
            f"but not in '{parts['train']}'"
        )
    files, labels = _class_folders(name, parts[split], names, every_class=split == "train")
    if geometry is None:
        first = list_files(parts["train"] / names[0])[0]  # the same picture for both splits
        geometry = Geometry(*picture_size(first))
    return StreamedImages(files, torch.tensor(labels), names, geometry, augment)


def _class_folders(
    name: str, part: Path, names: list[str], *, every_class: bool = True
) -> tuple[list[str], list[int]]:
    """Files and labels below ``part/<class>``."""
    files: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(names):
        found = list_files(part / class_name)
        if every_class and not found:
            raise UserError(f"data set '{name}': there is no picture in '{part / class_name}'")
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"data set '{name}': there is no picture in '{part}'")
    return files, labels


def _split_size(root: Path) -> tuple[Path, Geometry | None]:
    """``flowers@64`` to the folder and its size."""
    match = re.fullmatch(r"(.+)@(\d+)", root.name)
    if match is None:
        return root, None
    size = int(match[2])
    if size < 1:
        raise UserError(f"image-folder: size {size} is not allowed; a number of pixels >= 1 is")
    return root.with_name(match[1]), Geometry(size, size, resize=size)


def _words(path: Path, wnids: list[str]) -> list[str]:
    """First English word of each WordNet id, or the id where the file does not tell."""
    words: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            wnid, _, text = line.partition("\t")
            words[wnid] = text.split(",")[0].strip()
    return [words.get(wnid, wnid) for wnid in wnids]
