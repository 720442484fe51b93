"""The layers of RobNet.

Semantics and names of the state dict are those of the authors' repository (gmh14/RobNets), so that
its checkpoints fit: convolutions have no bias, batch norms outside the stem no weights, ReLU comes
first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._robnet_code import INPUT_EDGES
from ._robnet_layout import CellLayout

__all__ = [
    "Cell",
    "ConvSkip",
    "Edge",
    "FactorizedReduce",
    "ReLUConvBN",
    "SepConv",
    "edge_stride",
]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, batch norm: (N, C_in, H, W) to (N, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), _norm(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class SepConv(nn.Module):
    """Twice ReLU, 3x3 depthwise, 1x1 convolution, batch norm; the first half has the stride."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()

        def half(stride: int) -> list[nn.Module]:
            return [
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                _norm(channels),
            ]

        self.op = nn.Sequential(*half(stride), *half(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class FactorizedReduce(nn.Module):
    """Halve the resolution: two strided 1x1 convolutions, the second shifted by one pixel.

    (N, C_in, H, W) with even H and W to (N, C_out, H / 2, W / 2); C_out is even.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.bn = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        out: Tensor = self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))
        return out


class ConvSkip(nn.Module):
    """An edge with both operations, of which `forward` computes those that are asked for.

    A plain network has this on its ``conv+skip`` edges, a supernet on all edges: the states
    ``conv`` and ``conv+skip`` then share the convolution, ``skip`` and ``conv+skip`` the strided
    identity.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = SepConv(channels, stride)
        self.res = nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)

    def forward(self, x: Tensor, state: str = "conv+skip") -> Tensor | None:
        if state == "none":
            return None
        if state == "skip":
            skip: Tensor = self.res(x)
            return skip
        out: Tensor = self.conv(x)
        return out + self.res(x) if state == "conv+skip" else out


class Edge(nn.Module):
    """An edge whose state is fixed.

    Parameters
    ----------
    state
        One of :data:`._robnet_code.STATES`.
    channels
        Width of the cell.
    stride
        2 for an edge from an input node of a reduction cell, else 1.
    """

    def __init__(self, state: str, channels: int, stride: int) -> None:
        super().__init__()
        self.op: nn.Module | None
        if state == "none":
            self.op = None
        elif state == "conv":
            self.op = SepConv(channels, stride)
        elif state == "conv+skip":
            self.op = ConvSkip(channels, stride)
        else:
            self.op = nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)

    def forward(self, x: Tensor) -> Tensor | None:
        """The edge's output; None stands for zeros, which then cost nothing."""
        return None if self.op is None else self.op(x)


class Cell(nn.Module):
    """One cell: two preprocessing layers and 14 edges.

    Parameters
    ----------
    layout
        Shapes of the cell.
    edges
        The 14 edges in the order of the code. Each maps (N, C, H, W) to a tensor of the node's
        shape, or to None for zeros.
    """

    def __init__(self, layout: CellLayout, edges: list[nn.Module]) -> None:
        super().__init__()
        older, newer = layout.inputs
        self.stride = 2 if layout.reduction else 1
        kind = FactorizedReduce if layout.halve_older else ReLUConvBN
        self.preprocess0 = kind(older, layout.channels)
        self.preprocess1 = ReLUConvBN(newer, layout.channels)
        self._ops = nn.ModuleList(edges)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        """Output of the cell, (N, 4C, H / stride, W / stride).

        Parameters
        ----------
        s0, s1
            Outputs of cell k-2 and of cell k-1, the latter (N, C_1, H, W).
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = iter(self._ops)
        for _ in range(4):
            total: Tensor | None = None
            for state in states:
                out = next(edges)(state)
                if out is not None:
                    total = out if total is None else total + out
            if total is None:
                # A node without any operation. Zero times an input rather than new zeros: so the
                # input gradient, which attacks need, exists (and is zero) even where nothing is
                # connected.
                total = states[1][:, :, :: self.stride, :: self.stride] * 0
            states.append(total)
        return torch.cat(states[2:], dim=1)


def edge_stride(layout: CellLayout, edge: int) -> int:
    """Stride of edge number `edge` (0 to 13) of a cell."""
    return 2 if layout.reduction and edge in INPUT_EDGES else 1
