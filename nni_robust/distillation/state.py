"""Checkpoints of a search: tensors and optimizers, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nni_robust.training import _checkpoint
from nni_robust.training._setup import refuse_other

__all__ = ["load_search", "save_search"]


def save_search(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Write the checkpoint of a step.

    Parameters
    ----------
    folder
        Where checkpoints lie.
    step
        Names the file.
    tensors
        Everything that is learned.
    optimizers
        By name; their states are tensors only, as those of SGD and Adam are.
    state
        JSON-able.
    identity
        What the search is; only the same one continues.
    """
    every = dict(tensors)
    for name, optimizer in optimizers.items():
        for number, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if value is not None:
                    every[f"optimizer.{name}.{number}.{key}"] = value
    folder.mkdir(parents=True, exist_ok=True)
    _checkpoint.save(folder, step, every, {**state, "search": dict(identity)})


def load_search(
    folder: Path,
    tensors: Mapping[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
    identity: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Fill `tensors` and `optimizers` from the newest checkpoint; returns its state, or None.

    Raises
    ------
    UserError
        If the folder holds another search, or no checkpoint in it is readable.
    """
    found = _checkpoint.load_newest(folder)
    if found is None:
        return None
    kept, state = found
    refuse_other(state["search"], dict(identity), folder)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])
    for name, optimizer in optimizers.items():
        prefix = f"optimizer.{name}."
        entries: dict[int, dict[str, Tensor]] = {}
        for path, tensor in kept.items():
            if path.startswith(prefix):
                number, _, key = path.removeprefix(prefix).partition(".")
                entries.setdefault(int(number), {})[key] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    return dict(state)
