"""Whether a network is a teacher that a given sub-network can be cut from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.errors import UserError
from nni_robust.training.weights import optional_names

from ._wide_resnet_config import WideResNetConfig

__all__ = ["match_teacher"]


def match_teacher(
    network: nn.Module,
    state: Mapping[str, Tensor],
    own: WideResNetConfig,
    wanted: WideResNetConfig,
    build: Callable[[WideResNetConfig], nn.Module],
) -> tuple[WideResNetConfig, WideResNetConfig]:
    """What a teacher network is, and what the wanted part of it is, with the same outputs.

    Parameters
    ----------
    network, state
        The teacher network and its state dict.
    own
        The teacher of the space, which networks of other programs must be built like.
    wanted
        What is to be a part of it.
    build
        Builds the plain network of a configuration.

    Raises
    ------
    UserError
        If the wanted network is no part of it.
    """
    head = state.get("fc.bias")
    classes = own.num_classes if head is None else len(head)
    config = getattr(network, "config", None)
    known = isinstance(config, WideResNetConfig)
    teacher = config if isinstance(config, WideResNetConfig) else own
    teacher = dataclasses.replace(teacher, num_classes=classes)
    wanted = dataclasses.replace(wanted, num_classes=classes)
    for field in dataclasses.fields(teacher):
        theirs, ours = getattr(teacher, field.name), getattr(wanted, field.name)
        smaller = field.name in ("depths", "widths") and all(
            less <= more for less, more in zip(ours, theirs, strict=True)
        )
        if field.name == "blocks" or smaller or theirs == ours:
            continue
        raise UserError(
            f"inherit: {field.name}: {_shown(ours)} is no part of the teacher network, which has "
            f"{_shown(theirs)}"
        )
    if not known:
        with torch.device("meta"):
            built = build(teacher)
        names = {name: tensor.shape for name, tensor in built.state_dict().items()}
        extra = next((name for name in state if name not in names), None)
        if extra is not None:
            raise UserError(
                f"inherit: the teacher network ({type(network).__name__}) is not built as this "
                f"space's teacher, which has no '{extra}'"
            )
        needed = (name for name in names if name not in optional_names(built))
        wrong = next((n for n in needed if n not in state or state[n].shape != names[n]), None)
        if wrong is not None:
            found = f"has it as {tuple(state[wrong].shape)}" if wrong in state else "lacks it"
            raise UserError(
                f"inherit: the teacher network ({type(network).__name__}) is not built as this "
                f"space's teacher: '{wrong}' of shape {tuple(names[wrong])} is needed, it {found}"
            )
    return teacher, wanted


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
