"""Training steps and networks as the seeds' repositories have them, written anew."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.bench._rivals import plain_loop

__all__ = ["picture_loop", "plain_step", "repository_robnet"]


def picture_loop(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, step: float, steps: int, train: bool
) -> Tensor:
    """PGD as in RobNet's repository: gradients of the pictures only; see :func:`plain_loop`."""
    model.train(train)
    adv = x + torch.zeros_like(x).uniform_(-eps, eps)
    for _ in range(steps):
        adv.requires_grad_()
        loss = F.cross_entropy(model(adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [adv])
        adv = adv.detach() + step * torch.sign(gradient.detach())
        adv = torch.clamp(torch.min(torch.max(adv, x - eps), x + eps), 0, 1)
    return adv


def plain_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    pictures_only: bool = False,
    **attack: Any,
) -> None:
    """Attack a batch with the batch's own statistics, and step on it.

    Parameters
    ----------
    model, optimizer
        Network and SGD.
    x, y
        (N, C, H, W) in [0, 1], and (N,) labels.
    pictures_only
        The attack computes no gradients of weights (RobNet's repository); otherwise a full backward
        pass in each of its steps (Wsr-NAS's search).
    **attack
        ``eps``, ``step``, ``steps``.
    """
    loop = picture_loop if pictures_only else plain_loop
    adv = loop(model, x, y, train=True, **attack)
    optimizer.zero_grad()
    F.cross_entropy(model(adv), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def repository_robnet(model: nn.Module) -> nn.Module:
    """A copy of one of our RobNets that computes as its repository does.

    Edges without operation multiply their input by zero, sums begin with the number 0, and every
    layer that begins with a ReLU computes its own.
    """
    model = copy.deepcopy(model)
    cells: Any = model.cells
    for index, cell in enumerate(cells):
        cells[index] = _Cell(cell)
    return model


class _Cell(nn.Module):
    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = cell.preprocess0, cell.preprocess1
        sources = [source for node in range(4) for source in range(2 + node)]
        self.edges = nn.ModuleList(
            _edge(edge.op, cell.stride if source < 2 else 1)
            for edge, source in zip(cell._ops, sources, strict=True)
        )

    def forward(self, s0: Tensor, s1: Tensor, **_: Any) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = iter(self.edges)
        for _node in range(4):
            states.append(sum(next(edges)(state) for state in states[:]))
        return torch.cat(states[2:], dim=1)


def _edge(op: Any, stride: int) -> nn.Module:
    if op is None:
        return _Zero(stride)
    found: nn.Module = _Both(op.conv, op.res) if hasattr(op, "res") else op
    return found


class _Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class _Both(nn.Module):
    def __init__(self, conv: nn.Module, res: nn.Module) -> None:
        super().__init__()
        self.conv, self.res = conv, res

    def forward(self, x: Tensor) -> Any:
        return sum([self.conv(x), self.res(x)])
