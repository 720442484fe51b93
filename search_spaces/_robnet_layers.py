"""The layers of RobNet.

Semantics and names of the state dict are those of the authors' repository (gmh14/RobNets), so that
its checkpoints fit: convolutions have no bias, batch norms outside the stem no weights, ReLU comes
first. That ReLU is computed once for all layers that read the same map (:class:`Map`).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ._robnet_code import INPUT_EDGES
from ._robnet_layout import CellLayout

__all__ = [
    "Cell",
    "ConvSkip",
    "Edge",
    "FactorizedReduce",
    "Map",
    "ReLUConvBN",
    "SepConv",
    "call_with",
    "edge_stride",
    "shares",
]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def shares(x: Tensor) -> bool:
    """Whether ReLUs are shared: not on the meta device, where it saves nothing.

    There the exporter writes down which module calls which with what, and a ReLU of one module
    that another one uses has no place in that.
    """
    return not x.is_meta


class Map:
    """A feature map, and its ReLU, which is computed when somebody first asks for it.

    Up to four edges of a cell, and two later cells, begin with the ReLU of the same map.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._positive: Tensor | None = None

    @property
    def positive(self) -> Tensor:
        """ReLU of the map."""
        if self._positive is None:
            self._positive = torch.relu(self.value)
        return self._positive


def call_with(layer: nn.Module, x: Tensor, source: Map | None) -> Tensor | None:
    """Call a layer, told the map that its input is, if that is shared."""
    out: Tensor | None = layer(x) if source is None else layer(x, source=source)
    return out


def _after_relu(layers: nn.Sequential, x: Tensor, source: Map | None) -> Tensor:
    """What layers that begin with a ReLU make of a map; `source` is that map, if it is shared."""
    if source is None:
        out: Tensor = layers(x)
        return out
    out = source.positive
    for layer in itertools.islice(layers, 1, None):
        out = layer(out)
    return out


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, batch norm: (N, C_in, H, W) to (N, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), _norm(out_channels)
        )

    def forward(self, x: Tensor, source: Map | None = None) -> Tensor:
        return _after_relu(self.op, x, source)


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

    def forward(self, x: Tensor, source: Map | None = None) -> Tensor:
        return _after_relu(self.op, x, source)


class FactorizedReduce(nn.Module):
    """Halve the resolution: two strided 1x1 convolutions, the second shifted by one pixel.

    (N, C_in, H, W) with even H and W to (N, C_out, H / 2, W / 2); C_out is even.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.bn = _norm(out_channels)

    def forward(self, x: Tensor, source: Map | None = None) -> Tensor:
        x = torch.relu(x) if source is None else source.positive
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

    def forward(
        self, x: Tensor, state: str = "conv+skip", source: Map | None = None
    ) -> Tensor | None:
        if state == "none":
            return None
        if state == "skip":
            return _skip(self.res, x, source)
        out = call_with(self.conv, x, source)
        assert out is not None
        return out + _skip(self.res, x, source) if state == "conv+skip" else out


def _skip(op: nn.Module, x: Tensor, source: Map | None) -> Tensor:
    """An identity, or what stands for one where the resolution is halved."""
    if isinstance(op, nn.Identity):
        return x
    out = call_with(op, x, source)
    assert out is not None
    return out


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

    def forward(self, x: Tensor, source: Map | None = None) -> Tensor | None:
        """The edge's output; None stands for zeros, which then cost nothing."""
        if self.op is None:
            return None
        if isinstance(self.op, (ConvSkip, SepConv)):
            return call_with(self.op, x, source)
        return _skip(self.op, x, source)


class Cell(nn.Module):
    """One cell: two preprocessing layers and 14 edges.

    Parameters
    ----------
    layout
        Shapes of the cell.
    edges
        The 14 edges in the order of the code. Each maps (N, C, H, W), also given as a :class:`Map`,
        to a tensor of the node's shape, or to None for zeros.
    """

    def __init__(self, layout: CellLayout, edges: list[nn.Module]) -> None:
        super().__init__()
        older, newer = layout.inputs
        self.stride = 2 if layout.reduction else 1
        kind = FactorizedReduce if layout.halve_older else ReLUConvBN
        self.preprocess0 = kind(older, layout.channels)
        self.preprocess1 = ReLUConvBN(newer, layout.channels)
        self._ops = nn.ModuleList(edges)

    def forward(
        self, s0: Tensor, s1: Tensor, *, sources: tuple[Map, Map] | tuple[None, None] = (None, None)
    ) -> Tensor:
        """Output of the cell, (N, 4C, H / stride, W / stride).

        Parameters
        ----------
        s0, s1
            Outputs of cell k-2 and of cell k-1, the latter (N, C_1, H, W).
        sources
            The same two, where another cell has use for their ReLU, too.
        """
        states = []
        for layer, x, source in (
            (self.preprocess0, s0, sources[0]),
            (self.preprocess1, s1, sources[1]),
        ):
            value = call_with(layer, x, source)
            assert value is not None
            states.append(Map(value))
        edges = iter(self._ops)
        for _ in range(4):
            total: Tensor | None = None
            for state in states:
                out = call_with(next(edges), state.value, state if shares(state.value) else None)
                if out is not None:
                    total = out if total is None else total + out
            if total is None:
                # A node without any operation. Zero times an input rather than new zeros: so the
                # input gradient, which attacks need, exists (and is zero) even where nothing is
                # connected.
                total = states[1].value[:, :, :: self.stride, :: self.stride] * 0
            states.append(Map(total))
        return torch.cat([state.value for state in states[2:]], dim=1)


def edge_stride(layout: CellLayout, edge: int) -> int:
    """Stride of edge number `edge` (0 to 13) of a cell."""
    return 2 if layout.reduction and edge in INPUT_EDGES else 1
