"""CutMix: Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable
features" (1905.04899), algorithm A1.

A box of each picture of a batch is replaced by the same box of another picture, and the label by
the shares that both have of the pixels. The box is the same for the whole batch; its area is a
share of the picture drawn from Beta(1, 1), before what lies outside is cut off. Robust training
gains from it where weights are averaged (Rebuffi et al., "Fixing data augmentation to improve
adversarial robustness", 2103.01946).

With several devices each mixes its own part of the batch, with the same box.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.attacks import undisturbed
from nni_robust.data import generator

__all__ = ["Mixer", "cutmix", "draw_box"]


class Mixer:
    """Mixes the batches of one training.

    Parameters
    ----------
    model
        The network that is trained; asked once how many outputs it has.
    probability
        Share of the batches that are mixed.
    fabric
        The training's device and precision.
    """

    def __init__(self, model: nn.Module, probability: float, fabric: Any) -> None:
        self._model, self._probability, self._fabric = model, probability, fabric
        self._outputs: int | None = None

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch, mixed or not; see :func:`cutmix`."""
        if self._outputs is None:
            with torch.no_grad(), undisturbed(self._model), self._fabric.autocast():
                self._outputs = self._model(x[:1]).shape[1]
        return cutmix(
            x,
            y,
            self._outputs,
            seed,
            probability=self._probability,
            rank=self._fabric.global_rank,
        )


def cutmix(
    x: torch.Tensor,
    y: torch.Tensor,
    num_classes: int,
    seed: int,
    *,
    probability: float = 1.0,
    rank: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the pictures of a batch, or leave it as it is.

    Parameters
    ----------
    x
        (N, C, H, W), any type; not changed.
    y
        (N,), int64.
    num_classes
        Width of mixed labels: the number of the network's outputs.
    seed
        Seed of the batch: whether it is mixed, and the box.
    probability
        Share of the batches that are mixed.
    rank
        Number of the device; the pairs depend on it too.

    Returns
    -------
    tuple
        Pictures, and labels: (N, num_classes), float32, with rows that add up to 1; or `x` and `y`
        themselves.
    """
    numbers = generator(seed, "box")
    if float(torch.rand((), generator=numbers)) >= probability:
        return x, y
    height, width = x.shape[-2:]
    top, bottom, left, right = draw_box(height, width, numbers)
    partner = torch.randperm(len(x), generator=generator(seed, "partners", rank)).to(x.device)
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x[partner][..., top:bottom, left:right]
    share = (bottom - top) * (right - left) / (height * width)
    labels = F.one_hot(y, num_classes).float()
    return mixed, (1 - share) * labels + share * labels[partner]


def draw_box(height: int, width: int, numbers: torch.Generator) -> tuple[int, int, int, int]:
    """First and last-plus-one row, first and last-plus-one column of a box; it may be empty."""
    area, y, x = torch.rand(3, generator=numbers, dtype=torch.float64).tolist()
    side = math.sqrt(area)  # of the box, in sides of the picture
    (top, bottom), (left, right) = (
        _cut(int(place * length), int(side * length), length)
        for place, length in ((y, height), (x, width))
    )
    return top, bottom, left, right


def _cut(middle: int, size: int, length: int) -> tuple[int, int]:
    """Ends of a piece around a place, as far as it lies inside."""
    return max(middle - size // 2, 0), min(middle + size // 2, length)
