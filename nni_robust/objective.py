"""Robustness at a whole range of attack strengths as one number to minimise.

Cheng et al., "Neural Architecture Search for Wide Spectrum Adversarial Robustness", AAAI 2023
(Wsr-NAS); strengths, weights and balance are those of its code (zhicheng2T0/Wsr-NAS at 7736f5d).

J = clean * L_0^2 + robust * sum_i w_i * L_i^2, with L_0 the mean cross entropy on clean pictures,
L_i that under an attack of strength i, and weights w that sum to 1.

The repository divides the sums of L_i over *batches* by the number of *pictures*, which makes the
robust losses smaller by the batch size (64), and their squares by its square; ``averaging:
legacy`` does so too. The default is the mean over pictures for every loss.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Literal

from nni_robust.config import Ratio, strict
from nni_robust.errors import UserError
from nni_robust.threat import eps_label

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PAPER_STRENGTHS", "PAPER_WEIGHTS", "SpectrumObjective"]

PAPER_STRENGTHS = (0.03, 0.045, 0.06, 0.075, 0.09, 0.105)
PAPER_WEIGHTS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)


@dataclasses.dataclass(frozen=True)
class SpectrumObjective:
    """What a wide-spectrum search minimises.

    Parameters
    ----------
    strengths
        Radii of the attacks in the norm of the threat, pixel units, rising; may be written
        ``"8/255"``.
    weights
        One for each strength, in any unit: they are divided by their sum. None weighs all alike.
    clean, robust
        Weights of the clean part and of the robust part.
    power
        ``"squared"``: losses enter squared (the paper's code minimises a squared error to 0);
        ``"linear"``: as they are.
    averaging
        ``"pictures"``: losses are means over pictures. ``"legacy"``: robust losses are the
        repository's, see the module.

    Raises
    ------
    UserError
        If a value is impossible.
    """

    strengths: tuple[Ratio, ...] = PAPER_STRENGTHS
    weights: tuple[float, ...] | None = PAPER_WEIGHTS
    clean: float = 0.8
    robust: float = 0.2
    power: Literal["squared", "linear"] = "squared"
    averaging: Literal["pictures", "legacy"] = "pictures"

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        strengths = list(self.strengths)
        positive = all(math.isfinite(s) and s > 0 for s in strengths)
        rising = all(a < b for a, b in itertools.pairwise(strengths))
        if not strengths or not positive or not rising:
            raise UserError(
                f"objective.strengths: {strengths} is not allowed; rising numbers > 0 are"
            )
        if self.weights is not None:
            weights = list(self.weights)
            if len(weights) != len(strengths):
                raise UserError(
                    f"objective.weights: {len(weights)} weights for {len(strengths)} strengths are "
                    "not allowed; one for each is, or null for equal ones"
                )
            if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
                raise UserError(
                    f"objective.weights: {weights} is not allowed; numbers >= 0 are, one of them "
                    "above 0"
                )
        for name in ("clean", "robust"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"objective.{name}: {value!r} is not allowed; a number >= 0 is")
        if self.clean == self.robust == 0:
            raise UserError("objective: clean 0 with robust 0 is not allowed; one must be above 0")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses: ``"clean"`` and the strengths, such as ``"8/255"``."""
        return ("clean", *(eps_label(s) for s in self.strengths))

    @property
    def shares(self) -> tuple[float, ...]:
        """Weights of the strengths among themselves; they sum to 1."""
        weights = [1.0] * len(self.strengths) if self.weights is None else list(self.weights)
        return tuple(w / sum(weights) for w in weights)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """What each loss is multiplied by: the clean one, then one for each strength."""
        return (self.clean, *(self.robust * share for share in self.shares))

    def value(self, losses: Tensor) -> Tensor:
        """J of losses.

        Parameters
        ----------
        losses
            (..., 1 + strengths), cross entropy in nats: clean, then by strength.

        Returns
        -------
        torch.Tensor
            (...): lower is better; differentiable.
        """
        weights = losses.new_tensor(self.coefficients)
        powers = losses.square() if self.power == "squared" else losses
        return (weights * powers).sum(-1)

    def average(self, means: Tensor, sizes: Tensor) -> Tensor:
        """The losses of a set of pictures from those of its batches.

        Parameters
        ----------
        means
            (B, 1 + strengths), mean cross entropy of each batch.
        sizes
            (B,), pictures in each batch.

        Returns
        -------
        torch.Tensor
            (1 + strengths,).
        """
        share = (sizes / sizes.sum()).to(means.dtype)
        losses = (means * share[:, None]).sum(0)
        if self.averaging == "legacy":
            losses[1:] = means[:, 1:].sum(0) / sizes.sum()
        return losses
