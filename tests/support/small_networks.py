"""A network and pictures for attacks that take milliseconds; imported by test files and workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_net(classes: int = 5, seed: int = 0) -> nn.Sequential:
    """Smooth, with logits (N, `classes`) of pictures (N, 3, 8, 8); the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6 * 3 * 3, classes),
        )
        with torch.no_grad():  # centred and spread logits: all classes occur
            net[-1].bias -= net(torch.rand(64, 3, 8, 8)).mean(0)
            net[-1].weight *= 8
    return net


def labelled(net: nn.Module, n: int = 40) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, 8, 8), the first of always the same, and what the network says of them."""
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net(x).argmax(1)
