"""Tutors that are learned: for each layer of the student, logits over the teachers' layers.

RNAS-CL (Nath, Wang, Yang, 2301.08092): weights g_i = softmax((theta_i + Gumbel noise) / tau); the
loss is the weighted distance of each student map to the teachers' maps; tau falls from 5 to 0.0555
in 100 epochs.

The released code (SDL-ASU/RNAS-CL, f490b73) does not learn tutors: it multiplies the weights, which
sum to one, with a single norm over all teacher maps, so that the logits get no gradient. That form
is kept as ``reduction="released"`` for comparison. The 1 / (n_s n_t) of the paper gives gradients
so small that Adam's weight decay outweighs them; the default is 1 / n_s, and tutors do not decay.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nni_robust.errors import UserError
from nni_robust.relaxation import gumbel_weights

__all__ = ["Reduction", "TutorMatrix"]

Reduction = Literal["mean_layers", "paper", "released"]


class TutorMatrix(nn.Module):
    """Logits (n_s, n_t) of the tutor of every student layer, uniform at first.

    With several teachers the layers of all stand side by side, and a student layer chooses among
    their union.

    Parameters
    ----------
    students, teachers
        Numbers of layers n_s and n_t.
    reduction
        ``"mean_layers"``: weighted distances averaged over student layers; ``"paper"``: that
        divided by n_t; ``"released"``: the released code's, which gives the logits no gradient.
    debias
        Subtract from each distance the mean over student layers for that teacher layer, so that a
        teacher layer whose map is near to everything (a flat one) has no advantage. The student's
        gradient stays as it is.

    Raises
    ------
    UserError
        If the reduction is unknown or a number is not positive.
    """

    def __init__(
        self,
        students: int,
        teachers: int,
        reduction: Reduction = "mean_layers",
        debias: bool = False,
    ) -> None:
        super().__init__()
        if students < 1 or teachers < 1:
            raise UserError("tutors: both networks need at least one layer to compare")
        if reduction not in get_args(Reduction):
            allowed = ", ".join(get_args(Reduction))
            raise UserError(f"reduction: {reduction!r} is not allowed; allowed: {allowed}")
        self.reduction, self.debias = reduction, debias
        self.logits = nn.Parameter(torch.full((students, teachers), 1.0 / teachers))

    def sample(self, tau: float, generator: torch.Generator) -> Tensor:
        """One draw of soft weights (n_s, n_t) at temperature `tau`; rows sum to one."""
        return gumbel_weights({"tutors": self.logits}, tau, generator)["tutors"]

    def loss(self, distance: Tensor, weights: Tensor) -> Tensor:
        """The distillation loss, a scalar.

        Parameters
        ----------
        distance
            (n_s, n_t), see :func:`nni_robust.distillation.distances`.
        weights
            (n_s, n_t), see :meth:`sample`.
        """
        layers, teachers = distance.shape
        if self.reduction == "released":
            # Its norm runs over all teacher maps at once: sum_j g_j * norm = norm for any weights.
            # The root is not differentiable at 0, where student and teacher agree.
            norms = distance.sum(1).clamp_min(1e-12).sqrt()
            return norms.sum() / teachers + 0.0 * weights.sum()
        if self.debias:
            distance = distance - distance.detach().mean(0, keepdim=True)
        value = (weights * distance).sum() / layers
        return value / teachers if self.reduction == "paper" else value

    def probabilities(self) -> Tensor:
        """softmax of the logits, without noise: (n_s, n_t), detached."""
        return self.logits.detach().softmax(1)

    def harden(self) -> Tensor:
        """Tutor of each student layer, (n_s,) int64: the largest logit, the first of equals."""
        top = self.logits.detach().max(1, keepdim=True).values
        return (self.logits.detach() == top).int().argmax(1)

    def margin(self) -> Tensor:
        """Largest minus second largest probability of each student layer, (n_s,)."""
        if self.logits.shape[1] == 1:
            return torch.ones(len(self.logits))
        top = self.probabilities().topk(2, dim=1).values
        return top[:, 0] - top[:, 1]

    def entropy(self) -> float:
        """Mean entropy of the probabilities in nats; ln(n_t) at first, 0 when decided."""
        p = self.probabilities()
        return float(-(p * p.clamp_min(1e-30).log()).sum(1).mean())
