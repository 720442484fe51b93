"""What speed is compared with: torchattacks as it comes, and a loop as the seeds write it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.errors import UserError

__all__ = ["plain_loop", "torchattacks_pgd"]


def torchattacks_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, step: float, steps: int
) -> Tensor:
    """PGD of torchattacks from a random start, L∞; arguments as in :func:`plain_loop`.

    Raises
    ------
    UserError
        If torchattacks is not installed.
    """
    try:
        import torchattacks
    except ImportError as e:
        raise UserError(f"torchattacks cannot be imported ({e}); pip install torchattacks") from e
    made: Any = torchattacks.PGD(model, eps=eps, alpha=step, steps=steps, random_start=True)
    out: Tensor = made(x, y)
    return out


def plain_loop(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, step: float, steps: int, train: bool
) -> Tensor:
    """PGD with a full backward pass at each step, weights included, as in the seeds' code.

    Parameters
    ----------
    model
        Network; its parameters keep the gradients, and its batch norms what they saw.
    x
        (N, C, H, W), float, in [0, 1].
    y
        (N,), labels.
    eps, step
        Radius and step in pixel units.
    steps
        Number of gradient steps.
    train
        Batch norm uses the batch's statistics, as in RobNet's and Wsr-NAS's training; otherwise
        the running ones.
    """
    model.train(train)
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    adv = x + torch.empty_like(x).uniform_(-eps, eps)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        model.zero_grad()
        F.cross_entropy(model(adv), y).backward()  # type: ignore[no-untyped-call]
        assert adv.grad is not None
        adv = torch.min(torch.max(adv.detach() + step * adv.grad.sign(), low), high)
    return adv
