"""Data sets: labelled pictures in train, search-validation and test splits.

A data set is a function ``(folder, "train" | "test") -> Images`` (an :class:`ImageSet`, or
:class:`StreamedImages`), registered under its name; other packages add theirs with an entry point
in the group ``nni_robust.datasets``.
"""

from __future__ import annotations

# These register their data sets.
from nni_robust.data import cifar as cifar
from nni_robust.data import digits as digits
from nni_robust.data import folders as folders
from nni_robust.data import svhn as svhn
from nni_robust.data._torchvision import import_torchvision
from nni_robust.data.images import Batch, Images, ImageSet
from nni_robust.data.loading import absolute_task, load_dataset, load_task, preload_task
from nni_robust.data.seeding import derive_seed, generator, stratified_order
from nni_robust.data.splits import DataSplits
from nni_robust.data.streamed import StreamedImages

__all__ = [
    "Batch",
    "DataSplits",
    "ImageSet",
    "Images",
    "StreamedImages",
    "absolute_task",
    "derive_seed",
    "generator",
    "import_torchvision",
    "load_dataset",
    "load_task",
    "preload_task",
    "stratified_order",
]
