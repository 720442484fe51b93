"""Noise that every pixel has for itself: Gaussian, shot, impulse and speckle."""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy import special
from torch import Tensor

from nni_robust.corruptions._draws import Draws

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]

_LEVELS = 255


def gaussian_noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    """Light that is too low: a normal number is added to each value."""
    return x + deviation * draws.normal(*x.shape[1:])


def speckle_noise(x: Tensor, deviation: float, draws: Draws) -> Tensor:
    """Noise in proportion to the value."""
    return x + x * deviation * draws.normal(*x.shape[1:])


def impulse_noise(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """Salt and pepper: a share of the values becomes 0 or 1."""
    hit = draws.uniform(*x.shape[1:]) < amount
    return torch.where(hit, (draws.uniform(*x.shape[1:]) < 0.5).to(x.dtype), x)


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson counts of photons; values are rounded to bytes first, as counts need a table.

    The count is the least with a cumulative probability above a uniform number. One search serves
    all pixels: the tables of all levels stand one behind the other, each one higher.
    """
    table = torch.from_numpy(_cumulative(photons)).to(x.device)
    level = (x * _LEVELS).round().long()
    wanted = level.double() + draws.uniform(*x.shape[1:]).double()
    found = torch.searchsorted(table.flatten(), wanted, right=True)
    return (found - level * table.shape[1]).to(x.dtype) / photons


@functools.lru_cache(16)
def _cumulative(photons: float) -> np.ndarray:
    """(256, counts), float64: level plus the probability of at most so many photons."""
    most = int(photons + 12 * photons**0.5 + 20)
    means = np.arange(_LEVELS + 1) / _LEVELS * photons
    table = special.pdtr(np.arange(most + 1), means[:, None])
    table[:, -1] = 1.0
    return np.asarray(table + np.arange(_LEVELS + 1)[:, None])
