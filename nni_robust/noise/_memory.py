"""Samples to train an estimator on: a fair selection of a stream that is too long to keep.

Wsr-NAS keeps the last 600 of 2,560 fresh samples, which all come from the last batches. Here a
reservoir (Vitter, "Random sampling with a reservoir", ACM TOMS 1985, algorithm R) keeps each of the
stream's samples with the same probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nni_robust.data.seeding import derive_seed, generator
from nni_robust.errors import UserError
from nni_robust.noise._base import lengths

__all__ = ["NoiseMemory"]

#: Clean picture (B, C, H, W), sources (B, m, C, H, W) and the noise to find (B, C, H, W).
Sample = tuple[Tensor, Tensor, Tensor]


class NoiseMemory:
    """Leave-one-out samples: from all noises of a picture but one, find that one.

    Parameters
    ----------
    capacity
        Number of samples; with K noises a picture gives K.
    seed
        Of the selection and of the order of batches.
    """

    def __init__(self, capacity: int = 600, *, seed: int = 0) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise UserError(f"memory: {capacity!r} is not allowed; a whole number >= 1 is")
        self.capacity, self.seed = capacity, seed
        self.refills, self.seen = 0, 0
        self._parts: Sample | None = None

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def clear(self) -> None:
        """Forget everything: the network that the noises were made for has changed."""
        self.refills, self.seen, self._parts = self.refills + 1, 0, None

    @torch.no_grad()
    def add(self, x: Tensor, noises: Tensor) -> int:
        """Offer noises; returns how many samples they made.

        Parameters
        ----------
        x
            (B, C, H, W), clean pictures.
        noises
            (B, K, C, H, W), K >= 2 real noises of each. A noise of length 0, which has no
            direction, is neither a source nor something to find: its picture is left out.

        Raises
        ------
        UserError
            If the shapes do not fit each other or earlier ones.
        """
        if noises.dim() != 5 or noises.shape[1] < 2 or noises[:, 0].shape != x.shape:
            raise UserError(
                f"noises of shape {tuple(noises.shape)} for pictures of shape {tuple(x.shape)} are "
                "not allowed; (B, K, C, H, W) with K >= 2 is"
            )
        whole = (lengths(noises) > 0).all(1) & torch.isfinite(noises).flatten(1).all(1)
        x, noises = x[whole].detach(), noises[whole].detach()
        b, k = noises.shape[:2]
        if b == 0:
            return 0
        if self._parts is not None and self._parts[1].shape[1:] != noises[:, 1:].shape[1:]:
            raise UserError("noises: another number or size than those in memory; clear it first")
        places = self._places(b * k)
        if self._parts is None:
            shape = noises.shape[2:]
            self._parts = (
                x.new_zeros(self.capacity, *shape),
                x.new_zeros(self.capacity, k - 1, *shape),
                x.new_zeros(self.capacity, *shape),
            )
        for place, number in places.items():
            picture, left_out = divmod(number, k)
            others = [i for i in range(k) if i != left_out]
            for part, value in zip(
                self._parts,
                (x[picture], noises[picture, others], noises[picture, left_out]),
                strict=True,
            ):
                part[place] = value
        return b * k

    def _places(self, count: int) -> dict[int, int]:
        """Where samples 0 … count - 1 go: place to number of the last sample that takes it."""
        draw = generator(self.seed, "noise-memory", self.refills, self.seen)
        uniform = torch.rand(count, generator=draw, dtype=torch.float64)
        places: dict[int, int] = {}
        for number in range(count):
            self.seen += 1
            place = self.seen - 1
            if place >= self.capacity:
                place = int(uniform[number] * self.seen)
            if place < self.capacity:
                places[place] = number
        return places

    def batches(self, batch_size: int, epoch: int) -> Iterator[Sample]:
        """Go once through the samples in an order that depends on seed and epoch."""
        if self._parts is None:
            return
        order = torch.randperm(len(self), generator=generator(self.seed, "noise-order", epoch))
        for rows in torch.split(order, batch_size):
            x, sources, noise = self._parts
            yield x[rows], sources[rows], noise[rows]

    def strength(self, number: int, largest: float) -> float:
        """The random strength of a batch: uniform in (0, largest), by refill and number."""
        share = derive_seed(self.seed, "strength", self.refills, number) / 2**63
        return max(largest * share, 1e-3 * largest)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors."""
        state = {"counts": torch.tensor([self.refills, self.seen])}
        if self._parts is not None:
            for name, part in zip(("x", "sources", "noise"), self._parts, strict=True):
                state[name] = part[: len(self)].clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict` of a memory with the same settings."""
        self.refills, self.seen = (int(n) for n in state["counts"])
        self._parts = None
        if "x" in state:
            parts = []
            for name in ("x", "sources", "noise"):
                part = state[name].new_zeros(self.capacity, *state[name].shape[1:])
                part[: len(self)] = state[name]
                parts.append(part)
            self._parts = (parts[0], parts[1], parts[2])
