"""The network of a candidate: fresh, or with weights of a supernet or a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nni.nas.space import model_context
from torch import nn

from nni_robust.data import DataSplits
from nni_robust.errors import UserError
from nni_robust.nni_adapter.spaces import space_class
from nni_robust.registry import constructor_arguments
from nni_robust.store import open_store
from nni_robust.supernet import build_supernet, inherit
from nni_robust.task import Task
from nni_robust.teacher import load_teacher, teacher_from_store
from nni_robust.training.weights import load_weights

__all__ = ["fresh", "from_supernet", "from_teacher", "the_teacher"]


def fresh(model: Any, num_classes: int) -> nn.Module:
    """The network of an executable model with new weights, for a task's number of classes."""
    arguments = _arguments(model, num_classes)
    if arguments == dict(model.model.trace_kwargs):
        network: nn.Module = model.executable_model()
        return network
    with model_context(dict(model.sample)):
        built: nn.Module = space_class(model)(*model.model.trace_args, **arguments)
    return built


def from_supernet(model: Any, store: str | None, supernet: str) -> nn.Module:
    """The same with a copy of the weights of a supernet in the store."""
    if store is None:
        raise UserError("evaluator.store: inheriting a supernet's weights needs the run's store")
    whole = build_supernet(model.model.trace_copy().get(traceable=False))
    load_weights(whole, open_store(store).file(supernet, "weights.safetensors"))
    return inherit(whole, dict(model.sample))


def from_teacher(
    model: Any, num_classes: int, teacher: nn.Module, options: Mapping[str, Any]
) -> nn.Module:
    """The same with weights of a teacher, cut to size by the space's ``inherit``.

    Raises
    ------
    UserError
        If the space cannot do that, or knows no such option.
    """
    with torch.device("meta"):  # the space is only asked; its own weights are never used
        space = space_class(model)(*model.model.trace_args, **_arguments(model, num_classes))
    if not hasattr(space, "inherit"):
        raise UserError(
            f"evaluator.inherit: 'teacher' is not allowed with space {type(space).__name__}, which "
            "cannot cut a teacher's weights to size"
        )
    try:
        network: nn.Module = space.inherit(dict(model.sample), teacher, **options)
    except TypeError as e:
        raise UserError(f"evaluator.inherit_options: {e}") from e
    return network.requires_grad_()


def the_teacher(task: Task, store: str | None, key: str | None, data: DataSplits) -> nn.Module:
    """The teacher of a task: from the store where there is a key, else its own weights.

    Raises
    ------
    UserError
        If there is none.
    """
    if task.teacher is None:
        raise UserError("task.teacher is missing: the evaluator's settings need a teacher")
    if key is None:
        return load_teacher(task.teacher, data.num_classes, data.input_shape)
    if store is None:
        raise UserError("evaluator.store: a teacher by key needs the run's store")
    return teacher_from_store(store, key, task.teacher, data.num_classes, data.input_shape)


def _arguments(model: Any, num_classes: int) -> dict[str, Any]:
    """The space's named arguments, made for that many classes where they are a setting of it."""
    given = dict(model.model.trace_kwargs)
    known = constructor_arguments(space_class(model)) or []
    if "num_classes" in known[len(model.model.trace_args) :]:
        given["num_classes"] = num_classes
    return given
