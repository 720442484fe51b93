"""The AN-Estimator of Wsr-NAS: a recurrent network over the noises, and attention for each target.

Figure "AN-Estimator" in the README of the Wsr-NAS repository; layers and sizes are those of its
code (`search/module/AN_estimator`, commit 7736f5d), so that a 3 x 32 x 32 estimator has its 76,763
parameters. Notation: U_i are the noises, weakest first, each with length 1; s_i their lengths; t
the target length.

* values V_i = U_i + P(U_i), a residual block of two convolutions;
* states h_i (weak to strong) and g_i (strong to weak) of two recurrent cells that read an encoding
  of V_i and of s_i and start at an encoding of the picture;
* a query for t from both cells, with the interpolated states of the neighbours in place of a noise;
* noise(t) = w_lo V_lo + w_hi V_hi + Σ (key_i · query) V_i, rescaled to length t.

Different from the repository, whose code does not do what the figure shows: the strong-to-weak cell
really runs from the strongest noise; its states have their own key layer (the repository made one
and never used it); each direction has one query layer (it applied one of them twice); and
see :mod:`nni_robust.noise._base`. P starts at zero: an untrained estimator mixes real noises and
invents nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nni_robust.noise._base import Bracket, NoiseEstimator, Sources, estimators, padded

__all__ = ["BasicEstimator"]

_GRID = 3  # encodings are 10 channels on a 3 x 3 grid


@estimators.register("basic")
class BasicEstimator(NoiseEstimator):
    """AN-Estimator, 76,763 parameters for three channels.

    Parameters
    ----------
    input_shape
        (C, H, W); the encodings have one size whatever the picture's, so any will do.
    hidden
        Channels inside the residual block.
    channels
        Channels of an encoding; the recurrent states have 9 times as many numbers.
    norm_size
        Numbers that encode a length.
    """

    name = "basic"

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        *,
        hidden: int = 100,
        channels: int = 10,
        norm_size: int = 20,
    ) -> None:
        super().__init__(input_shape)
        c, side = input_shape[0], min(input_shape[1:])
        size = channels * _GRID**2
        last = nn.Conv2d(hidden, c, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.values = nn.Sequential(nn.Conv2d(c, hidden, 3, padding=1), nn.ReLU(), last)
        self.encode_up = _encoder(c, channels, side)
        self.encode_down = _encoder(c, channels, side)
        self.encode_picture = _encoder(c, channels, side)
        self.encode_norm = nn.Sequential(nn.Linear(1, norm_size), nn.ReLU())
        self.cell_up = _layer(2 * size + norm_size, size)
        self.cell_down = _layer(2 * size + norm_size, size)
        self.query_up, self.query_down = _layer(size, size), _layer(size, size)
        self.key_up, self.key_down = _layer(size, size), _layer(size, size)

    def _raw(self, sources: Sources, bracket: Bracket, targets: Tensor) -> Tensor:
        values = sources.units + _each(self.values, sources.units)
        lengths = self.encode_norm(sources.norms.unsqueeze(2))
        start = self.encode_picture(sources.x)
        up = _chain(self.cell_up, _each(self.encode_up, values), lengths, start)
        down = _chain(
            self.cell_down, _each(self.encode_down, values).flip(1), lengths.flip(1), start
        ).flip(1)
        # Where there is no neighbour, the chain has not begun: its state is the picture's encoding.
        low = bracket.pick(padded(up, first=start), False)
        high = bracket.pick(padded(down, last=start), True)
        between = bracket.mix(low, high)
        wanted = self.encode_norm(targets.unsqueeze(2))
        query = torch.cat(
            [
                self.query_up(self.cell_up(torch.cat([between, wanted, low], 2))),
                self.query_down(self.cell_down(torch.cat([between, wanted, high], 2))),
            ],
            2,
        )
        key = torch.cat([self.key_up(up), self.key_down(down)], 2)
        attention = query @ key.transpose(1, 2)
        return self._base(values, bracket) + torch.einsum("bnm,bmchw->bnchw", attention, values)


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


def _encoder(inputs: int, channels: int, side: int) -> nn.Sequential:
    """Picture-like tensors to vectors: stride 4 at 32 pixels, less for smaller pictures."""
    stride = min(max(side // 8, 1), 4)
    padding = 0 if (side - 5) // stride + 1 >= _GRID else 2
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 5, stride, padding),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(_GRID),
        nn.Flatten(),
    )


def _each(module: nn.Module, values: Tensor) -> Tensor:
    """A module on every noise of every picture."""
    out: Tensor = module(values.flatten(0, 1))
    return out.view(*values.shape[:2], *out.shape[1:])


def _chain(cell: nn.Module, codes: Tensor, lengths: Tensor, start: Tensor) -> Tensor:
    """States (B, m, size) of a recurrent cell, in the order of the codes."""
    state, states = start, []
    for i in range(codes.shape[1]):
        state = cell(torch.cat([codes[:, i], lengths[:, i], state], 1))
        states.append(state)
    return torch.stack(states, 1)
