"""A linear loss predictor: ridge regression of the logarithms of the losses.

Why it is the default beside the LSTM of Wsr-NAS: an LSTM reads the rows of a matrix one after the
other with the same weights, so it has no weight for *this* operation on *that* edge. From 100
architectures whose losses are sums of such weights it learns these 100 by heart and orders new
ones hardly better than chance (Kendall tau 0.0 to 0.2 on DARTS cells, 0.1 to 0.35 on RobNet's,
over learning rates, weight decays and noises; tests/nni_robust/test_predictor.py). Ridge
regression orders them, has nothing to tune (its penalty is that with the smallest leave-one-out
error) and costs milliseconds.

Losses fall while a supernet is trained, whatever the architecture; the age of an entry is a
variable of its own, and predictions are for the newest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LinearPredictor"]

_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
#: Unit of the age: large, so that the penalty hardly holds its weight back.
_AGE = 10.0
_SMALLEST = 1e-6


class LinearPredictor(nn.Module):
    """Predicts several losses of an architecture.

    Parameters
    ----------
    rows, width
        Of the matrices.
    outputs
        Number of losses.
    """

    mean: Tensor
    center: Tensor
    slopes: Tensor
    shift: Tensor

    def __init__(self, rows: int, width: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(rows * width))
        self.register_buffer("center", torch.zeros(outputs))
        self.register_buffer("slopes", torch.zeros(rows * width, outputs))
        self.register_buffer("shift", torch.zeros(outputs))

    def forward(self, weights: Tensor) -> Tensor:
        """Losses (N, outputs), all positive, of matrices (N, rows, width)."""
        logs = (weights.flatten(1) - self.mean) @ self.slopes + self.center + self.shift
        return logs.exp()

    def fit(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Fit to matrices (N, rows, width) and losses (N, outputs), oldest first.

        Returns
        -------
        torch.Tensor
            (N, outputs): each entry's losses as predicted from all others (with one entry, its
            own).
        """
        logs = losses.double().clamp_min(_SMALLEST).log()
        flat = weights.double().flatten(1)
        mean, center = flat.mean(0), logs.mean(0)
        age = torch.linspace(-0.5, 0.5, len(flat), dtype=torch.float64)[:, None]
        age = _AGE * (age if len(flat) > 1 else torch.zeros_like(age))
        x, y = torch.cat([flat - mean, age], 1), logs - center
        spread = y.std(0, unbiased=False).clamp_min(_SMALLEST)
        kernel, eye = x @ x.T, torch.eye(len(x), dtype=torch.float64)
        best: tuple[float, Tensor, Tensor] | None = None
        for penalty in _PENALTIES:
            inverse = torch.linalg.inv(kernel + penalty * eye)
            dual = inverse @ y
            # Allen's PRESS: the residual of each entry when it is left out.
            left_out = dual / inverse.diagonal()[:, None]
            error = float((left_out / spread).square().mean())
            if best is None or error < best[0]:
                best = (error, dual, left_out)
        assert best is not None
        slopes = x.T @ best[1]
        self.mean.copy_(mean)
        self.center.copy_(center)
        self.slopes.copy_(slopes[:-1])
        self.shift.copy_(slopes[-1] * age[-1])
        return (logs - best[2]).exp().to(losses.dtype) if len(flat) > 1 else losses
