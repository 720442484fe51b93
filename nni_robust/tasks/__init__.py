"""Tasks by name, such as ``cifar10/wrn-28-10/pgd20``, and task files.

A task says what a search is for; :func:`nni_robust.data.load_task` reads the data of one.
"""

from __future__ import annotations

from nni_robust.tasks._catalogue import list_tasks, named_task
from nni_robust.tasks._files import load_task_file
from nni_robust.tasks._shape import task_shape

__all__ = ["list_tasks", "load_task_file", "named_task", "task_shape"]
