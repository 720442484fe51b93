"""The replay memory: architectures that were measured, and their losses."""

from __future__ import annotations

import torch
from torch import Tensor

from nni_robust.errors import UserError

__all__ = ["ReplayMemory"]


class ReplayMemory:
    """First in, first out.

    Parameters
    ----------
    capacity
        Entries that are kept (100 in Wsr-NAS); the oldest goes.

    Raises
    ------
    UserError
        If `capacity` is below 1.
    """

    def __init__(self, capacity: int = 100) -> None:
        if capacity < 1:
            raise UserError(f"memory: {capacity} is not allowed; at least 1 is")
        self.capacity = capacity
        self.entries: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.entries)

    def push(self, weights: Tensor, losses: Tensor) -> None:
        """Add an architecture's matrix (rows, width) and its losses (outputs,).

        Raises
        ------
        UserError
            If a loss is NaN or infinite: it would spoil every later prediction.
        """
        if not torch.isfinite(losses).all():
            raise UserError(f"a measured loss is not finite: {losses.tolist()}")
        self.entries.append((weights.detach().clone().float(), losses.detach().clone().float()))
        del self.entries[: -self.capacity]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Matrices (N, rows, width) and losses (N, outputs), oldest first."""
        if not self.entries:
            return torch.zeros(0), torch.zeros(0)
        weights, losses = zip(*self.entries, strict=True)
        return torch.stack(weights), torch.stack(losses)

    def load(self, weights: Tensor, losses: Tensor) -> None:
        """Take up what :meth:`tensors` gave."""
        self.entries = list(zip(weights, losses, strict=True)) if len(losses) else []
