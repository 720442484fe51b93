"""Attacks that run several times: each run gets the pictures that still resist."""

from __future__ import annotations

import torch
from torch import Tensor

from nni_robust.attacks._base import Victim
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball

__all__ = ["Survivors"]


class Survivors:
    """The pictures of a batch that are still classified correctly, and what was found for all.

    A picture that is misclassified from the start stays as it is; one that every run leaves correct
    comes back as the first run left it.

    Parameters
    ----------
    victim
        The network.
    y
        (N,), int64, true labels.
    ball
        Clean pictures and what is allowed around them.
    noise
        Random numbers.
    """

    def __init__(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> None:
        self._y, self._ball, self._noise = y, ball, noise
        with torch.no_grad():
            #: (N, K), logits of the clean pictures.
            self.logits = victim(ball.x)
        #: (N, C, H, W), what was found.
        self.found = ball.x.clone()
        #: Which pictures resist, int64.
        self.rows = (self.logits.argmax(1) == y).nonzero().flatten()
        self._first = True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def y(self) -> Tensor:
        return self._y[self.rows]

    @property
    def ball(self) -> Ball:
        return self._ball.select(self.rows)

    @property
    def noise(self) -> Noise:
        return self._noise.select(self.rows)

    def only(self, places: Tensor) -> Survivors:
        """Some of the pictures that resist, by their places among them, as a batch of its own."""
        part = object.__new__(Survivors)
        part.__dict__.update(self.__dict__)
        part.rows = self.rows[places]
        return part

    def target(self, rank: int) -> Tensor:
        """The class that the network ranks at this place for each clean picture; 0 is its own."""
        order = self.logits[self.rows].sort(dim=1, descending=True, stable=True).indices
        return order[:, rank]

    def settle(self, adv: Tensor, broken: Tensor) -> None:
        """Take the pictures of a run, and which of them the network misclassifies."""
        keep = torch.ones_like(broken) if self._first else broken
        self.found[self.rows[keep]] = adv[keep]
        self.rows, self._first = self.rows[broken.logical_not()], False
