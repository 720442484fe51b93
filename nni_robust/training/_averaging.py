"""Exponential moving average of a network's weights and statistics.

Averaged weights are flatter minima and overfit less in adversarial training (Izmailov et al.,
1803.05407; Gowal et al., 2010.03593). As in the latter's code the decay of update n is at most
(1 + n) / (10 + n), so that short trainings do not keep the initial weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The average of all floating-point weights and buffers of a network.

    Parameters
    ----------
    model
        The network, on its device; averages start from its weights.
    decay
        In (0, 1).

    Attributes
    ----------
    updates
        Number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        live = model.state_dict(keep_vars=True)
        self._live = {name: t for name, t in live.items() if t.is_floating_point()}
        self._average = {name: t.detach().clone() for name, t in self._live.items()}
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights for a while, then its own again, bit for bit."""
        own = {name: t.detach().clone() for name, t in self._live.items()}
        self.apply()
        try:
            yield
        finally:
            self._fill(self._live, own)

    def apply(self) -> None:
        """Give the network the averaged weights for good."""
        self._fill(self._live, self._average)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by name."""
        return self._average

    def load(self, tensors: dict[str, torch.Tensor], updates: int) -> None:
        """Continue from saved averages."""
        self._fill(self._average, tensors)
        self.updates = updates

    @staticmethod
    @torch.no_grad()
    def _fill(target: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])
