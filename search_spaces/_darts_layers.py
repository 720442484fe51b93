"""The layers of a plain network of DARTS cells; operations and preprocessing are NNI's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from nni.nas.hub.pytorch.nasnet import OPS, CellPreprocessor
from nni.nas.hub.pytorch.utils.nn import drop_path
from torch import Tensor, nn

from ._darts_layout import CellLayout

__all__ = [
    "Cell",
]


class Cell(nn.Module):
    """One cell: two preprocessing layers, and nodes that are the sum of two edges.

    It computes what NNI's frozen cell does, and has the same names in its state dict, but is a
    plain module, adds without stacking, and drops paths without changing the names.

    Parameters
    ----------
    layout
        Shapes of the cell.
    edges
        ``(operation, state)``, two for each node in turn.
    concat
        States that the output concatenates.
    """

    def __init__(
        self, layout: CellLayout, edges: Sequence[tuple[str, int]], concat: Sequence[int]
    ) -> None:
        super().__init__()
        self.preprocessor = CellPreprocessor(*layout.inputs, layout.channels, layout.halve_older)
        ops = [OPS[op](layout.channels, layout.stride(state), True) for op, state in edges]
        self.ops = nn.ModuleList(
            nn.ModuleList(ops[first : first + 2]) for first in range(0, len(ops), 2)
        )
        self.sources = tuple(state for _, state in edges)
        self.concat = tuple(concat)
        #: Probability, while training, that an edge other than an identity is dropped.
        self.drop_path = 0.0

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        """Output of the cell, (N, layout.out_channels, H / stride, W / stride).

        Parameters
        ----------
        s0, s1
            Outputs of cell k-2 and of cell k-1, the latter (N, C_1, H, W).
        """
        states: list[Tensor] = self.preprocessor([s0, s1])
        sources = iter(self.sources)
        for node in self.ops:
            first, second = cast("nn.ModuleList", node)
            total = self._edge(first, states[next(sources)])
            states.append(total + self._edge(second, states[next(sources)]))
        return torch.cat([states[state] for state in self.concat], dim=1)

    def _edge(self, op: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = op(x)
        if self.drop_path and self.training and not isinstance(op, nn.Identity):
            out = drop_path(out, self.drop_path, training=True)
        return out
