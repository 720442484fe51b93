"""What a checkpoint holds: everything a training needs to go on as if nothing had happened."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nni_robust.training._averaging import WeightAverage

__all__ = ["RunningSums", "capture", "part", "restore"]


class RunningSums:
    """Loss and accuracy of an epoch, added up on the device so that no batch waits for it."""

    def __init__(self, device: torch.device) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        #: (4,): sum of losses over pictures, pictures classified correctly, pictures that have one
        #: label (mixed ones have several), pictures.
        self.sums = torch.zeros(4, dtype=exact, device=device)
        #: First step whose loss was not finite; -1 is none.
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, step: int, loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> None:
        """Add a batch: mean loss (scalar), logits (N, K), labels (N,) or mixed ones (N, K)."""
        mixed = y.is_floating_point()
        added = loss.new_tensor([0, 0, 0 if mixed else len(y), len(y)], dtype=self.sums.dtype)
        added[0] = loss.to(self.sums.dtype) * len(y)
        if not mixed:
            added[1] = (logits.argmax(1) == y).sum()
        self.sums += added
        first = (self.bad_step < 0) & ~loss.isfinite()
        self.bad_step = torch.where(first, step, self.bad_step)

    def mark(self, step: int) -> None:
        """Count the step's loss as not finite."""
        self.bad_step = torch.where(self.bad_step < 0, step, self.bad_step)

    def means(self, fabric: Any) -> tuple[float, float | None]:
        """Mean loss and accuracy over all devices; waits for them.

        The accuracy is that of pictures with one label, None where all were mixed.
        """
        sums = fabric.all_reduce(self.sums, reduce_op="sum").tolist()
        loss, correct, single, count = sums
        return loss / count, correct / single if single else None

    def bad(self, fabric: Any) -> int | None:
        """First step whose loss was not finite, agreed on by all devices; waits for them."""
        step = int(fabric.all_reduce(self.bad_step, reduce_op="max"))
        return None if step < 0 else step

    def clear(self) -> None:
        """Start a new epoch."""
        self.sums.zero_()


def capture(
    model: nn.Module, optimizer: Any, average: WeightAverage | None, sums: RunningSums
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and JSON-able state of a training."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    settings: dict[str, Any] = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{key}"] = value
            else:
                settings.setdefault(str(number), {})[key] = value
    state: dict[str, Any] = {"optimizer": settings}
    if average is not None:
        tensors |= {f"average.{name}": t for name, t in average.tensors().items()}
        state["averaged"] = average.updates
    tensors["sums"] = sums.sums
    return tensors, state


def restore(
    tensors: dict[str, torch.Tensor],
    state: dict[str, Any],
    model: nn.Module,
    optimizer: Any,
    average: WeightAverage | None,
    sums: RunningSums,
) -> None:
    """Put a captured state back."""
    model.load_state_dict(part(tensors, "model."))
    entries: dict[int, dict[str, Any]] = {int(n): dict(e) for n, e in state["optimizer"].items()}
    for name, tensor in part(tensors, "optimizer.").items():
        number, key = name.split(".", 1)
        entries.setdefault(int(number), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    if average is not None:
        average.load(part(tensors, "average."), state["averaged"])
    sums.sums.copy_(tensors["sums"])


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
