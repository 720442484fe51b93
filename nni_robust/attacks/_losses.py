"""What a gradient attack climbs, and its gradient in the picture.

Cross entropy: Goodfellow et al., "Explaining and harnessing adversarial examples" (1412.6572). DLR,
the difference of logits ratio: Croce and Hein, "Reliable evaluation of adversarial robustness with
an ensemble of diverse parameter-free attacks" (2003.01690), eq. 6. Margin: Carlini and Wagner,
"Towards evaluating the robustness of neural networks" (1608.04644), f6 without confidence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nni_robust.errors import UserError

__all__ = ["LOSSES", "Loss", "loss_gradient"]

#: (N, K) logits and (N,) labels to (N,) losses.
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the log-probability of the label."""
    return F.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the margin of the label, in units of the distance from first to third logit.

    Unlike the cross entropy it does not vanish when the logits are scaled up.
    """
    if logits.shape[1] < 3:
        raise UserError(
            f"the loss 'dlr' needs at least 3 classes; the network has {logits.shape[1]}"
        )
    ranked, order = logits.topk(3, dim=1)
    rival = torch.where(order[:, 0] == y, ranked[:, 1], ranked[:, 0])
    margin = logits.gather(1, y.unsqueeze(1)).squeeze(1) - rival
    return -margin / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the lead of the label's logit over the largest other one."""
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return others.amax(1) - logits.gather(1, y.unsqueeze(1)).squeeze(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}


def loss_gradient(
    logits: Tensor, adv: Tensor, y: Tensor, loss: Loss, *, half: bool = False
) -> Tensor:
    """Gradient of each picture's loss in that picture, up to a positive factor if `half`.

    Losses are summed, not averaged: a picture's gradient does not depend on the size of its batch.

    Parameters
    ----------
    logits
        (N, K), computed from `adv`.
    adv
        (N, C, H, W), requires a gradient.
    y
        (N,), int64.
    loss
        What to differentiate.
    half
        The network computes in float16, where the gradient of a confident picture underflows to 0.
        Each picture's gradient then starts at size 1 in the logits; attacks use its direction only.

    Raises
    ------
    UserError
        If the logits do not depend on the picture in a differentiable way.
    """
    losses = loss(logits, y)
    if not losses.requires_grad:
        raise UserError(
            "a gradient attack needs a differentiable network; the logits have no gradient"
        )
    if not half:
        return torch.autograd.grad(losses.sum(), adv)[0]
    (upper,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    upper = upper / upper.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(upper.dtype).tiny)
    return torch.autograd.grad(logits, adv, upper)[0]
