"""Feature denoising blocks: filter a feature map, mix its channels, add it to what came in.

Xie, Wu, van der Maaten, Yuille, He, "Feature Denoising for Improving Adversarial Robustness", CVPR
2019, https://arxiv.org/abs/1812.03411, section 4: y = x + BN(Conv1x1(D(x))). The scale of the batch
norm starts at 0, so a fresh block changes nothing.

D is one of:

- ``"gaussian"``: non-local means, embedded Gaussian. Each position becomes a mean of all positions,
  weighted by softmax(θ(x_i) · φ(x_j) / sqrt(d)); θ and φ are 1x1 convolutions to d = C/2 channels.
  Without bias and drawn with standard deviation 0.01, as in the authors' code
  (facebookresearch/ImageNet-Adversarial-Training).
- ``"dot"``: non-local means, dot product: weights x_i · x_j / (number of positions), no softmax and
  no weights of its own.
- ``"mean"``: 3x3 mean; at the border, of the positions that exist.
- ``"median"``: 3x3 median of each channel; the border is repeated outwards.

RobNet (CVPR 2020, table 4) uses such blocks but says neither which nor where; here they come after
the last cell or block of each stage, where Xie et al. have them in a ResNet.

Costs are exact. The products of the non-local means are matrix products and so count as MACs, like
everywhere in nni-robust; means, medians and softmax do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_robust.cost import Cost
from nni_robust.errors import UserError

__all__ = ["DENOISERS", "Denoise", "denoise_cost", "one_per_stage"]


class _EmbeddedGaussian(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = nn.Conv2d(channels, inner, 1, bias=False)
        self.phi = nn.Conv2d(channels, inner, 1, bias=False)
        nn.init.normal_(self.theta.weight, std=0.01)
        nn.init.normal_(self.phi.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.theta(x).flatten(2), self.phi(x).flatten(2)  # (N, C/2, positions)
        scores = query.transpose(1, 2) @ (key / query.shape[1] ** 0.5)
        weights = scores.softmax(dim=2)  # (N, positions, positions), each row adds up to 1
        out: Tensor = x.flatten(2) @ weights.transpose(1, 2)
        return out.reshape(x.shape)


def _dot_product(x: Tensor) -> Tensor:
    flat = x.flatten(2)  # (N, C, positions)
    channels, positions = flat.shape[1:]
    # Divided first, so that long sums stay small in half precision.
    mean = flat.transpose(1, 2) / positions
    # The same product either way; the smaller matrix in the middle costs less.
    out = (flat @ mean) @ flat if channels <= positions else flat @ (mean @ flat)
    return out.reshape(x.shape)


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _median(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    shifted = [
        x[:, :, row : row + height, column : column + width]
        for row in range(3)
        for column in range(3)
    ]
    return torch.stack(shifted).median(dim=0).values


#: Filters that have no weights.
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "dot": _dot_product,
    "mean": _mean,
    "median": _median,
}

#: Names of the variants.
DENOISERS = ("gaussian", *_PLAIN)


class Denoise(nn.Module):
    """A denoising block, (N, C, H, W) to the same shape; the identity until it is trained.

    Parameters
    ----------
    kind
        One of :data:`DENOISERS`. ``"gaussian"`` holds a matrix of (H W) x (H W) per picture, 4 MiB
        in float32 at 32x32.
    channels
        C.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.filter: Callable[[Tensor], Tensor]
        self.filter = _EmbeddedGaussian(channels) if kind == "gaussian" else _PLAIN[kind]
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.conv(self.filter(x)))
        return out


def denoise_cost(kind: str, channels: int, height: int, width: int) -> Cost:
    """What a block costs, in closed form.

    Parameters
    ----------
    kind, channels
        See :class:`Denoise`.
    height, width
        Size of the feature map.
    """
    positions = height * width
    weights, products = channels**2, 0
    if kind == "gaussian":
        inner = max(channels // 2, 1)
        weights += 2 * channels * inner
        products = positions**2 * (inner + channels)
    elif kind == "dot":
        products = 2 * channels * positions * min(channels, positions)
    return Cost(params=weights + 2 * channels, macs=weights * positions + products)


def one_per_stage(denoise: Any, stages: int) -> tuple[str | None, ...]:
    """The setting `denoise` of a space as one entry per stage.

    Parameters
    ----------
    denoise
        None, one of :data:`DENOISERS` for all stages, or a list of such, one per stage.
    stages
        Number of stages.

    Raises
    ------
    UserError
        If it is something else.
    """
    several = isinstance(denoise, Sequence) and not isinstance(denoise, str)
    entries = tuple(denoise) if several else (denoise,) * stages
    if len(entries) != stages or any(e is not None and e not in DENOISERS for e in entries):
        raise UserError(
            f"denoise: {denoise!r} is not allowed; allowed: {', '.join(DENOISERS)}, null for none, "
            f"or a list of {stages} of these, one per stage"
        )
    return entries
