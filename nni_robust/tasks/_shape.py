"""How many classes a task has, and how large its pictures are."""

from __future__ import annotations

from nni_robust.task import Task
from nni_robust.tasks._catalogue import catalogue

__all__ = ["task_shape"]


def task_shape(task: Task) -> tuple[int, tuple[int, int, int]]:
    """Number of classes, and (C, H, W) of a picture.

    Known for the data sets of the catalogue; others are read to find out.

    Raises
    ------
    UserError
        If the data set must be read and cannot.
    """
    known = catalogue()["datasets"].get(task.dataset.partition(":")[0])
    if known is not None:
        channels, height, width = known["input_shape"]
        return known["num_classes"], (channels, height, width)
    from nni_robust.data import load_task

    splits = load_task(task)
    return splits.num_classes, splits.input_shape
