"""What all noise estimators share: sorted sources, the two neighbours of a target, the final norm.

Corrected against the Wsr-NAS repository (commit 7736f5d): sources are sorted for each picture, the
closer neighbour has the larger weight, a target outside the sources' range takes its nearest source
(the repository's base term is zero there), every target is computed on its own (the repository
mixes pixels between targets), and a picture without noise gives zeros, not NaN.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.errors import UserError, nearest
from nni_robust.registry import Registry, constructor_arguments

__all__ = [
    "TINY",
    "Bracket",
    "NoiseEstimator",
    "Sources",
    "estimators",
    "lengths",
    "list_estimators",
    "make_estimator",
]

#: Added to lengths that divide: a picture without noise gives zeros.
TINY = 1e-12

estimators = Registry("noise estimator", "nni_robust.noise_estimators")


def list_estimators() -> list[str]:
    """Every name that :func:`make_estimator` knows."""
    return estimators.names()


def make_estimator(
    name: str, input_shape: Sequence[int] = (3, 32, 32), *, seed: int = 0, **settings: Any
) -> NoiseEstimator:
    """Make a noise estimator.

    Parameters
    ----------
    name
        ``"basic"`` or ``"plus"`` (the networks of Wsr-NAS), ``"scale"`` or ``"interpolate"``
        (nothing to learn), or what another package registered in `nni_robust.noise_estimators`.
    input_shape
        (C, H, W) of the pictures.
    seed
        Of the initial weights; torch's global generator is left as it was.
    **settings
        Settings of that estimator.

    Raises
    ------
    UserError
        On an unknown name or setting, or an impossible shape.
    """
    cls = estimators.get(name)
    shape = tuple(input_shape)
    if len(shape) != 3 or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise UserError(f"input_shape: {input_shape!r} is not allowed; (C, H, W) is")
    if min(shape) < 1:
        raise UserError(f"input_shape: {input_shape!r} is not allowed; all numbers >= 1 are")
    allowed = [a for a in constructor_arguments(cls) or settings if a != "input_shape"]
    for key in settings:
        if key not in allowed:
            raise UserError(
                f"unknown key '{key}' in noise estimator '{name}'{nearest(key, allowed)} "
                f"(allowed: {', '.join(allowed) or 'none'})"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = cls(shape, **settings)
    if not isinstance(made, NoiseEstimator):
        raise UserError(f"noise estimator '{name}' gives a {type(made).__name__}")
    return made


def lengths(noise: Tensor) -> Tensor:
    """L2 norm of each picture's noise: (…, C, H, W) to (…)."""
    size: Tensor = torch.linalg.vector_norm(noise, dim=(-3, -2, -1))
    return size


@dataclasses.dataclass(frozen=True)
class Sources:
    """Real noises of each picture, weakest first.

    Parameters
    ----------
    x
        (B, C, H, W), clean pictures.
    units
        (B, m, C, H, W), noises of length 1 (or 0).
    norms
        (B, m), their L2 norms, rising.
    """

    x: Tensor
    units: Tensor
    norms: Tensor


@dataclasses.dataclass(frozen=True)
class Bracket:
    """The neighbours of each target among the sources.

    Slots are numbered 0 … m + 1: slot 0 stands for "no weaker source", 1 … m are the sources, and
    m + 1 stands for "no stronger source".

    Parameters
    ----------
    low
        (B, n), int64, slot of the last source that is not stronger than the target; the other
        neighbour is the next slot.
    weight_low, weight_high
        (B, n): linear interpolation, 1 for the only neighbour of a target outside the range.
    """

    low: Tensor
    weight_low: Tensor
    weight_high: Tensor

    @classmethod
    def of(cls, norms: Tensor, targets: Tensor) -> Bracket:
        """The bracket of (B, n) targets among (B, m) rising norms."""
        m = norms.shape[1]
        low = (norms.unsqueeze(1) <= targets.unsqueeze(2)).sum(2)
        has_low, has_high = low > 0, low < m
        below = norms.gather(1, (low - 1).clamp_min(0))
        above = norms.gather(1, low.clamp_max(m - 1))
        inside = (above - targets) / (above - below).clamp_min(TINY)
        weight = torch.where(has_low & has_high, inside, has_low.to(norms.dtype))
        return cls(low, weight, 1 - weight)

    def pick(self, slots: Tensor, high: bool) -> Tensor:
        """One neighbour of each target: (B, m + 2, …) by slot to (B, n, …)."""
        index = self.low + 1 if high else self.low
        rows = torch.arange(len(slots), device=slots.device).unsqueeze(1)
        return slots[rows, index]

    def mix(self, low: Tensor, high: Tensor) -> Tensor:
        """The weighted sum of both neighbours, (B, n, …) each."""
        shape = (*self.low.shape, *[1] * (low.dim() - 2))
        return self.weight_low.view(shape) * low + self.weight_high.view(shape) * high


def padded(values: Tensor, first: Tensor | None = None, last: Tensor | None = None) -> Tensor:
    """(B, m, …) sources as (B, m + 2, …) slots; the outer slots are zero where not given."""
    zero = torch.zeros_like(values[:, :1])
    ends = [zero if end is None else end.unsqueeze(1) for end in (first, last)]
    return torch.cat([ends[0], values, ends[1]], 1)


class NoiseEstimator(nn.Module, ABC):
    """Noise of given lengths from noises of other lengths.

    Attributes
    ----------
    name
        As in :func:`make_estimator`.
    input_shape
        (C, H, W).
    """

    name: str = ""

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return any(p.requires_grad for p in self.parameters())

    def forward(self, sources: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        """Estimate noises.

        Parameters
        ----------
        sources
            (B, m, C, H, W), m >= 1 real noises of each picture, in any order.
        x
            (B, C, H, W), clean pictures in [0, 1].
        targets
            (B, n), L2 norms that the noises shall have, >= 0.

        Returns
        -------
        Tensor
            (B, n, C, H, W), each with exactly its target's norm, up to rounding; zeros where all
            sources are zero.

        Raises
        ------
        UserError
            If the shapes do not fit.
        """
        shape = tuple(x.shape[1:])
        if sources.dim() != 5 or x.dim() != 4 or shape != self.input_shape:
            raise UserError(
                f"pictures of shape {tuple(x.shape)} are not allowed; the estimator is made for "
                f"(B, {', '.join(map(str, self.input_shape))})"
            )
        b, m = sources.shape[:2]
        if sources.shape != (len(x), m, *shape) or m < 1 or targets.shape[:-1] != (b,):
            raise UserError(
                f"sources of shape {tuple(sources.shape)} and targets of shape "
                f"{tuple(targets.shape)} are not allowed; (B, m, C, H, W) and (B, n) are"
            )
        norms, order = lengths(sources).sort(dim=1, stable=True)
        rows = torch.arange(b, device=x.device).unsqueeze(1)
        units = sources[rows, order] / (norms + TINY).view(b, m, 1, 1, 1)
        given = Sources(x, units, norms)
        raw = self._raw(given, Bracket.of(norms, targets), targets)
        size = targets / lengths(raw).clamp_min(TINY)
        return raw * size.view(*size.shape, 1, 1, 1)

    @abstractmethod
    def _raw(self, sources: Sources, bracket: Bracket, targets: Tensor) -> Tensor:
        """(B, n, C, H, W), noises whose lengths do not matter."""

    @staticmethod
    def _base(noises: Tensor, bracket: Bracket) -> Tensor:
        """Neighbours of each target, weighed by how close they are."""
        slots = padded(noises)
        return bracket.mix(bracket.pick(slots, False), bracket.pick(slots, True))
