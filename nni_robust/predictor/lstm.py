"""The loss predictor: from an architecture's matrix to its loss at every strength.

Cheng et al., Wsr-NAS (AAAI 2023), after Li et al., "Neural architecture search in a proxy
validation loss landscape" (PVLL-NAS, ICML 2020). An LSTM reads the rows of the matrix; one linear
head per loss reads its last state. For 8 columns, 16 hidden units and 7 losses that is 1,783
parameters.

Different from the repository: its heads are 2 * sigmoid, so no loss above 2 can be predicted; here
they are softplus, and the error of each head is measured in standard deviations of its own loss,
so that a loss with a small spread counts as much as one with a large one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.config import strict
from nni_robust.errors import UserError

__all__ = ["LossPredictor", "PredictorSettings"]


@dataclasses.dataclass(frozen=True)
class PredictorSettings:
    """A loss predictor and how it is fitted.

    Parameters
    ----------
    kind
        ``"linear"`` (:mod:`nni_robust.predictor.linear`, which has no further settings) or
        ``"lstm"``. None leaves it to the search's mode.
    hidden
        Units of the LSTM.
    head
        ``"softplus"``, or ``"legacy"``: 2 * sigmoid and plain squared errors. None leaves it to the
        search's mode.
    lr
        Of Adam; None leaves it to the search's mode: 1e-2, or the 1e-3 of Wsr-NAS, with which 500
        passes over 100 entries do not even reproduce their order.
    betas, weight_decay
        Of Adam.
    input_noise
        Standard deviation of the normal noise on the matrices during fitting.
    batch_size
        Entries of the memory per step.
    passes_init, passes
        Times through the memory before the search, and in each of its epochs.
    """

    kind: Literal["linear", "lstm"] | None = None
    hidden: int = 16
    head: Literal["softplus", "legacy"] | None = None
    lr: float | None = None
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3
    input_noise: float = 0.01
    batch_size: int = 64
    passes_init: int = 500
    passes: int = 500

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for name, low in (("hidden", 1), ("batch_size", 1), ("passes_init", 0), ("passes", 0)):
            if getattr(self, name) < low:
                raise UserError(
                    f"predictor.{name}: {getattr(self, name)} is not allowed; at least {low} is"
                )
        for name in ("weight_decay", "input_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"predictor.{name}: {getattr(self, name)} is not allowed; a number >= 0 is"
                )
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"predictor.lr: {self.lr} is not allowed; a number > 0 is")
        if not all(0 <= b < 1 for b in self.betas):
            raise UserError(
                f"predictor.betas: {list(self.betas)} is not allowed; two numbers from 0 to below "
                "1 are"
            )


class LossPredictor(nn.Module):
    """Predicts several losses of an architecture.

    Parameters
    ----------
    width
        Columns of the matrices.
    outputs
        Number of losses.
    hidden
        Units of the LSTM.
    head
        See :class:`PredictorSettings`.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self, width: int, outputs: int, hidden: int = 16, head: str | None = "softplus"
    ) -> None:
        super().__init__()
        self.legacy = head == "legacy"
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.heads = nn.Linear(hidden, outputs)  # one row of weights and a bias for each loss
        self.register_buffer("center", torch.zeros(outputs))
        self.register_buffer("scale", torch.ones(outputs))

    def forward(self, weights: Tensor) -> Tensor:
        """Losses (N, outputs), all positive, of matrices (N, rows, width)."""
        _, (state, _) = self.lstm(weights)
        raw: Tensor = self.heads(state[-1])
        if self.legacy:
            return 2 * raw.sigmoid()
        # At raw = 0 this is the mean of the losses seen, and a unit of raw is about their spread.
        return F.softplus(_inverse_softplus(self.center) + raw * self.scale)

    def standardise(self, losses: Tensor) -> None:
        """Take mean and spread of losses (N, outputs) as the unit of each head."""
        if self.legacy:
            return
        self.center.copy_(losses.mean(0).clamp(min=1e-3))
        spread = losses.std(0, unbiased=False) if len(losses) > 1 else torch.zeros_like(self.scale)
        # A loss that is the same everywhere has nothing to tell; its unit must not be 0.
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def error(self, weights: Tensor, losses: Tensor) -> Tensor:
        """What fitting minimises: mean squared errors of the heads, summed over them."""
        wrong: Tensor = (self(weights) - losses) / self.scale
        return wrong.square().mean(0).sum()


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
