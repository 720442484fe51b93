"""From the name of a data set to its splits."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nni_robust._teacher import absolute_teacher
from nni_robust.data.augment import RESIZED_CROP
from nni_robust.data.images import Images
from nni_robust.data.seeding import stratified_order
from nni_robust.data.splits import DataSplits
from nni_robust.data.streamed import MEMORY_LIMIT, StreamedImages
from nni_robust.errors import UserError
from nni_robust.registry import datasets
from nni_robust.store import content_key
from nni_robust.task import Task

__all__ = ["DATA_VARIABLE", "absolute_task", "load_dataset", "load_task", "preload_task"]

#: Environment variable that names the folder of the data sets.
DATA_VARIABLE = "NNI_ROBUST_DATA"

#: What a registered data set is: (folder, "train" or "test") to pictures.
Reader = Callable[[Path, str], Images]


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.2,
    split_seed: int = 0,
    train_limit: int | None = None,
    validation_limit: int | None = None,
    test_limit: int | None = None,
    test: bool = False,
) -> DataSplits:
    """Load a data set.

    Parameters
    ----------
    name
        ``digits``, ``cifar10``, ``cifar100``, ``svhn``, ``tiny-imagenet``, ``imagenet``,
        ``image-folder:<path>``, or what another package registered. ``name:path`` says where the
        files are, in place of `root`.
    root
        Folder of the data sets' files; None is ``$NNI_ROBUST_DATA``, else ``./data``. Nothing is
        ever downloaded.
    validation
        Share of the training pictures that becomes the search-validation split, in [0, 1).
    split_seed
        Seed of that split, and of which pictures a limit keeps.
    train_limit, validation_limit, test_limit
        Keep that many pictures of a split, classes in their shares; None is all.
    test
        Also read the test pictures. A search leaves this off.

    Returns
    -------
    DataSplits
        Splits without a common picture, each in a seeded order in which every beginning holds the
        classes in their shares. Pictures are in memory (CPU) up to 2 GiB per split, else streamed.

    Raises
    ------
    UserError
        If the data set is unknown, its files are missing or damaged, a number is impossible, or
        fewer training pictures than classes are left.
    """
    name, reader, folder = _locate(name, root)
    if not isinstance(validation, (int, float)) or not 0 <= validation < 1:
        raise UserError(f"validation: {validation!r} is not allowed; a share in [0, 1) is")
    for key, limit in (
        ("train_limit", train_limit),
        ("validation_limit", validation_limit),
        ("test_limit", test_limit),
    ):
        if limit is not None and limit < 1:
            raise UserError(
                f"{key}: {limit!r} is not allowed; a number of pictures >= 1 is, or null for all"
            )

    source = reader(folder, "train")
    order = stratified_order(source.labels, split_seed, "validation")
    cut = math.floor(len(order) * validation + 0.5)
    if validation > 0 and cut == 0:
        raise UserError(
            f"validation: {validation!r} of {len(order)} pictures of '{name}' leaves none"
        )
    splits = DataSplits(
        name,
        _keep(source, order[cut:][:train_limit]),
        _keep(source, order[:cut][:validation_limit]),
        _read_test(reader(folder, "test"), split_seed, test_limit) if test else None,
    )
    if len(splits.train) < splits.num_classes:
        raise UserError(
            f"data set '{name}' has {splits.num_classes} classes but only {len(splits.train)} "
            "training pictures are left; raise train_limit or lower validation"
        )
    return splits


#: Data that :func:`preload_task` read, by what determines them.
_preloaded: dict[str, DataSplits] = {}


def load_task(task: Task, *, test: bool = False) -> DataSplits:
    """The data of a task, see :func:`load_dataset`."""
    arguments = _arguments(task)
    known = None if test else _preloaded.get(content_key(arguments))
    return load_dataset(**arguments, test=test) if known is None else known


def preload_task(task: Task) -> None:
    """Read the data of a task now; later :func:`load_task` without the test split gives them.

    For a process that forks trials, which then share one copy in memory.
    """
    _preloaded[content_key(_arguments(task))] = load_task(task)


def _arguments(task: Task) -> dict[str, Any]:
    """What determines the data of a task, as :func:`load_dataset` takes it."""
    return {
        "name": task.dataset,
        "root": task.root,
        "validation": task.validation,
        "split_seed": task.split_seed,
        "train_limit": task.train_limit,
        "validation_limit": task.validation_limit,
        "test_limit": task.test_limit,
    }


def absolute_task(task: Task) -> Task:
    """The same task with absolute paths: it means the same in a process started elsewhere.

    Raises
    ------
    UserError
        If the data set is unknown.
    """
    name, _, path = task.dataset.partition(":")
    _, _, folder = _locate(task.dataset, task.root)
    if task.teacher is not None:
        task = dataclasses.replace(task, teacher=absolute_teacher(task.teacher))
    if path:
        return dataclasses.replace(task, dataset=f"{name}:{folder.absolute()}")
    return dataclasses.replace(task, root=str(folder.absolute()))


def _locate(name: str, root: str | Path | None) -> tuple[str, Reader, Path]:
    """Name, reader and folder of a data set."""
    base, _, path = name.partition(":")
    reader: Reader = datasets.get(base)
    if path:
        return name, reader, Path(path).expanduser()
    if base == "image-folder":
        raise UserError("data set 'image-folder' needs its folder: image-folder:<path>")
    return name, reader, Path(root or os.environ.get(DATA_VARIABLE) or "data").expanduser()


def _keep(source: Images, indices: torch.Tensor) -> Images:
    """The pictures at `indices`, decoded where they are few enough and need no decoding later."""
    kept = source.take(indices)
    if (
        isinstance(kept, StreamedImages)
        and kept.nbytes <= MEMORY_LIMIT
        and RESIZED_CROP not in kept.augment
    ):
        return kept.load()
    return kept


def _read_test(source: Images, split_seed: int, limit: int | None) -> Images:
    return _keep(source, stratified_order(source.labels, split_seed, "test")[:limit])
