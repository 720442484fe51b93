"""The weights of the epoch that was best so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nni_robust.training._records import EpochRecord
from nni_robust.training._state import part

__all__ = ["BestEpoch"]


class BestEpoch:
    """All tensors of the best epoch's network, as it was validated; none before the first."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}

    def offer(self, model: nn.Module, robust: float | None, history: Sequence[EpochRecord]) -> None:
        """Keep the network if its robust accuracy is above that of every epoch before."""
        before = [record.val_robust or 0.0 for record in history]
        if not before or (robust or 0.0) > max(before):
            self._tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}

    def apply(self, model: nn.Module) -> bool:
        """Give the network the best epoch's weights; False if there are none."""
        if self._tensors:
            model.load_state_dict(self._tensors)
        return bool(self._tensors)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it."""
        return {f"best.{name}": tensor for name, tensor in self._tensors.items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take it up from a checkpoint's tensors."""
        self._tensors = part(tensors, "best.")
