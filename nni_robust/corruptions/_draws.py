"""Random numbers of a corruption: those of a picture depend on it alone, not on its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from nni_robust.attacks._noise import Noise
from nni_robust.data.seeding import derive_seed

__all__ = ["Draws"]


class Draws:
    """One source for a batch; each call gives new numbers.

    Parameters
    ----------
    seed
        Of the evaluation.
    name, severity
        What they are for.
    index
        (N,), int64, on the pictures' device: places of the pictures in the data.
    """

    def __init__(self, seed: int, name: str, severity: int, index: Tensor) -> None:
        self._noise = Noise(derive_seed(seed, "corruption", name, severity), index)
        self._n, self._calls = len(index), 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(N, *shape), float32, in [low, high)."""
        return self._noise.uniform(self._like(shape), self._stream()) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """(N, *shape), float32, standard normal."""
        return self._noise.normal(self._like(shape), self._stream())

    def _like(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(self._n, *(shape or (1,)), device=self._noise.index.device)

    def _stream(self) -> int:
        self._calls += 1
        return 4 * self._calls  # a normal number takes the streams 8k + 1 and 8k + 2
