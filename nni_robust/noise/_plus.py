"""AN-Estimator plus of Wsr-NAS: recurrent maps instead of vectors, attention by softmax.

Layers and sizes are those of the repository's code (`search/module/AN_estimator_plus`, commit
7736f5d); a 3 x 32 x 32 estimator has its 138,504 parameters. Notation as in
:mod:`nni_robust.noise._basic`.

* maps F_i (weak to strong) and B_i (strong to weak) of two recurrent blocks, each reading the map
  before it (first the picture), an encoding of s_i as a picture, and U_i;
* a query for t from w_lo U_lo, w_hi U_hi and their sum; keys and values from F_i and B_i, and from
  one more slot without noise, so that attention can rest;
* noise(t) = w_lo U_lo + w_hi U_hi + Σ softmax(key_i · query / √50) value_i, rescaled to length t.

Different from the repository: w_hi belongs to U_hi (it took w_lo twice), attention is scaled as its
unused constant says, and the learnt map that it never used is the length's encoding in the slot
without noise. Batch normalisation works with batch statistics in training mode only, as usual
(the repository never switched to evaluation, so pictures of a batch changed each other's noise).
The values' last normalisation starts at zero: an untrained estimator is the interpolation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nni_robust.noise._base import Bracket, NoiseEstimator, Sources, estimators, padded

__all__ = ["PlusEstimator"]


@estimators.register("plus")
class PlusEstimator(NoiseEstimator):
    """AN-Estimator plus, 138,504 parameters for 3 x 32 x 32.

    Parameters
    ----------
    input_shape
        (C, H, W).
    hidden
        Channels of the first convolution of every block.
    key_size
        Length of keys and queries.
    """

    name = "plus"

    def __init__(
        self, input_shape: tuple[int, int, int], *, hidden: int = 300, key_size: int = 50
    ) -> None:
        super().__init__(input_shape)
        c, height, width = input_shape
        self.encode_norm = nn.Sequential(
            nn.Linear(1, height * width), nn.ReLU(), nn.Unflatten(-1, (1, height, width))
        )
        self.rest = nn.Parameter(torch.rand(1, height, width))
        self.cell_up = _maps(2 * c + 1, hidden, c)
        self.cell_down = _maps(2 * c + 1, hidden, c)
        side = min(height, width)
        self.query = _vectors(3 * c, hidden, key_size, side)
        self.key = _vectors(2 * c, hidden, key_size, side)
        self.value = _maps(2 * c, hidden, c)
        last = self.value[-1]
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)

    def _raw(self, sources: Sources, bracket: Bracket, targets: Tensor) -> Tensor:
        units, x = sources.units, sources.x
        lengths = self.encode_norm(sources.norms.unsqueeze(2))
        rest = torch.cat([x, self.rest.expand(len(x), -1, -1, -1), torch.zeros_like(x)], 1)
        up = _chain(self.cell_up, lengths, units, x)
        down = _chain(self.cell_down, lengths.flip(1), units.flip(1), x).flip(1)
        maps = torch.cat([up, down], 2)
        none = torch.cat([self.cell_up(rest), self.cell_down(rest)], 1)
        maps = torch.cat([maps, none.unsqueeze(1)], 1)  # (B, m + 1, 2C, H, W)
        slots = padded(units)
        low, high = bracket.pick(slots, False), bracket.pick(slots, True)
        zero = torch.zeros_like(low)
        low, high = bracket.mix(low, zero), bracket.mix(zero, high)
        base = low + high
        query = _each(self.query, torch.cat([low, high, base], 2))
        key = _each(self.key, maps)
        scores = query @ key.transpose(1, 2) * key.shape[2] ** -0.5
        values = _each(self.value, maps)
        return base + torch.einsum("bnm,bmchw->bnchw", scores.softmax(2), values)


def _each(module: nn.Module, maps: Tensor) -> Tensor:
    out: Tensor = module(maps.flatten(0, 1))
    return out.view(*maps.shape[:2], *out.shape[1:])


def _chain(cell: nn.Module, lengths: Tensor, units: Tensor, start: Tensor) -> Tensor:
    """Maps (B, m, C, H, W) of a recurrent block, in the order of the noises."""
    state, states = start, []
    for i in range(units.shape[1]):
        state = cell(torch.cat([state, lengths[:, i], units[:, i]], 1))
        states.append(state)
    return torch.stack(states, 1)


def _maps(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A wide convolution and a separable one, at full resolution."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, hidden, 3, padding=1),
        nn.ReLU(),
        *_separable(hidden, outputs, padding=1),
    )


def _vectors(inputs: int, hidden: int, size: int, side: int) -> nn.Sequential:
    """The same without padding, down to one vector; tiny pictures need the padding."""
    padding = 0 if side >= 5 else 1
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, hidden, 3, padding=padding),
        nn.ReLU(),
        *_separable(hidden, size, padding=padding),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    )


def _separable(inputs: int, outputs: int, padding: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
        nn.Conv2d(outputs, outputs, 3, padding=padding, groups=outputs, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
    ]
