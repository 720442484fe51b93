"""An architecture as a matrix: one row of weights for each choice of a space.

A predictor of losses reads such matrices, and a search moves logits of the same shape. There are
two layouts.

* :class:`LabelEncoding`, for any NNI space of categorical choices: a row for each label, a column
  for each of its values, shorter rows padded with zeros.
* :class:`EdgeEncoding`, for cells with two edges per node (NNI's ``Cell``, the DARTS space): a row
  for each pair of a node and an earlier state, a column for ``none`` and each operation. With
  DARTS' two cells that is the 28 x 8 of Wsr-NAS (Cheng et al., AAAI 2023).

What is new in the second layout: Wsr-NAS trains all 14 edges of a cell, of which the final network
keeps two per node. Here the path that is trained and measured is the network that would be
exported: the same top-2 rule decodes logits with noise (a draw) and without (the result). The
matrix is a relaxation of just that rule, see :meth:`EdgeEncoding.relax`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from nni.mutable import Categorical, CategoricalMultiple, MutableAnnotation
from torch import Tensor

from nni_robust.errors import UserError
from nni_robust.sampling import Sample

__all__ = ["EdgeEncoding", "Encoding", "LabelEncoding", "make_encoding"]

_EDGE = re.compile(r"(?P<cell>.*/)?(?P<part>op|input)_(?P<node>\d+)_(?P<edge>\d+)")


class Encoding(Protocol):
    """How the choices of a space become a matrix, and back.

    Attributes
    ----------
    mask
        (rows, width), bool: places that stand for something; the others are padding.
    names
        One name for each row.
    choices
        How many choices an architecture is made of: labels, or edges.
    """

    mask: Tensor
    names: tuple[str, ...]
    choices: int

    def relax(self, logits: Tensor, tau: float) -> Tensor:
        """Weights (..., rows, width) in [0, 1] of logits of that shape; each row sums to 1.

        Differentiable; with `tau` to 0 they become :meth:`encode` of :meth:`decode`.
        """

    def decode(self, logits: Tensor) -> Sample:
        """The architecture that logits (rows, width) prefer."""

    def encode(self, sample: Mapping[str, Any]) -> Tensor:
        """The matrix (rows, width) of zeros and ones of an architecture."""

    def shared(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
        """How many of its choices two architectures have in common."""


def make_encoding(
    mutables: Mapping[str, Any], layout: Literal["auto", "labels", "edges"] = "auto"
) -> Encoding:
    """The encoding of a space.

    Parameters
    ----------
    mutables
        The space's ``simplify()``.
    layout
        ``"labels"`` or ``"edges"``, see the module; ``"auto"``: edges where all choices belong to
        cells with two edges per node, else labels.

    Raises
    ------
    UserError
        If a choice is not one of a few values, or `layout` does not suit the space.
    """
    choices = {k: m for k, m in mutables.items() if not isinstance(m, MutableAnnotation)}
    cells = _find_cells(choices)
    if layout == "edges" and cells is None:
        raise UserError(
            "layout: 'edges' is not allowed for this space; it needs cells with two edges per "
            "node, 'labels' is allowed"
        )
    if cells is not None and layout != "labels":
        return EdgeEncoding(cells)
    return LabelEncoding(choices)


class LabelEncoding:
    """One row for each label; `choices` maps labels to NNI's mutables."""

    def __init__(self, choices: Mapping[str, Any]) -> None:
        self.values = {label: _values(label, mutable) for label, mutable in choices.items()}
        if not self.values:
            raise UserError("the space has no choices, so there is nothing to search")
        self.names, self.choices = tuple(self.values), len(self.values)
        sizes = torch.tensor([len(values) for values in self.values.values()])
        self.mask = torch.arange(int(sizes.max())) < sizes[:, None]

    def relax(self, logits: Tensor, tau: float) -> Tensor:
        """See :class:`Encoding`: a softmax over the values of each label."""
        mask = self.mask.to(logits.device)
        return (logits / tau).masked_fill(~mask, -torch.inf).softmax(-1)

    def decode(self, logits: Tensor) -> Sample:
        """See :class:`Encoding`."""
        best = logits.detach().cpu().masked_fill(~self.mask, -torch.inf).argmax(-1).tolist()
        return {
            label: values[index]
            for (label, values), index in zip(self.values.items(), best, strict=True)
        }

    def encode(self, sample: Mapping[str, Any]) -> Tensor:
        """See :class:`Encoding`."""
        matrix = torch.zeros(self.mask.shape)
        for row, (label, values) in enumerate(self.values.items()):
            if label not in sample or sample[label] not in values:
                raise UserError(f"the sample has no allowed value for '{label}'")
            matrix[row, values.index(sample[label])] = 1
        return matrix

    def shared(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
        """See :class:`Encoding`."""
        return sum(first[label] == second[label] for label in self.values)


class EdgeEncoding:
    """One row for each edge of each cell, node by node, edges by the state that they read.

    Column 0 is ``none``, the others are the operations in the space's order.

    Parameters
    ----------
    cells
        Prefix of the labels (such as ``"normal/"``) to the number of nodes and the operations,
        which must be the same for all cells.
    """

    def __init__(self, cells: Mapping[str, tuple[int, list[str]]]) -> None:
        self.cells = dict(cells)
        self.operations = next(iter(self.cells.values()))[1]
        #: (prefix, node, state) of each row; nodes count from 2, as in NNI's labels.
        self.edges = [
            (prefix, node, state)
            for prefix, (nodes, _) in self.cells.items()
            for node in range(2, 2 + nodes)
            for state in range(node)
        ]
        self.names = tuple(f"{prefix}{state}-{node}" for prefix, node, state in self.edges)
        self.choices = sum(2 * nodes for nodes, _ in self.cells.values())
        self.mask = torch.ones(len(self.edges), 1 + len(self.operations), dtype=torch.bool)

    def _groups(self) -> list[tuple[str, int, int]]:
        """(prefix, node, first row) of each node; its rows follow one another."""
        return [(p, n, row) for row, (p, n, state) in enumerate(self.edges) if state == 0]

    def relax(self, logits: Tensor, tau: float) -> Tensor:
        """See :class:`Encoding`.

        A softmax over the operations, times how surely the edge is among the two that its node
        keeps: a sigmoid of the distance between the edge's strength and the middle between the
        node's second and third. What is left goes to ``none``.
        """
        operations = (logits[..., 1:] / tau).softmax(-1)
        strength = logits[..., 1:].amax(-1)
        gates = torch.ones_like(strength)
        parts = []
        for _, node, row in self._groups():
            mine = strength[..., row : row + node]
            if node > 2:
                ordered = mine.sort(-1, descending=True).values
                middle = (ordered[..., 1:2] + ordered[..., 2:3]) / 2
                parts.append(((mine - middle) / tau).sigmoid())
            else:
                parts.append(gates[..., row : row + node])
        gates = torch.cat(parts, -1)[..., None]
        return torch.cat([1 - gates, gates * operations], -1)

    def decode(self, logits: Tensor) -> Sample:
        """See :class:`Encoding`.

        Each node keeps the two edges whose best operation has the highest logit, the higher one
        first; ``none`` cannot be chosen (the rule of DARTS and Wsr-NAS).
        """
        values, best = logits.detach().cpu()[:, 1:].max(-1)
        sample: Sample = {}
        for prefix, node, row in self._groups():
            kept = values[row : row + node].argsort(descending=True, stable=True)[:2].tolist()
            for edge, state in enumerate(kept):
                sample[f"{prefix}op_{node}_{edge}"] = self.operations[int(best[row + state])]
                sample[f"{prefix}input_{node}_{edge}"] = [state]
        return sample

    def encode(self, sample: Mapping[str, Any]) -> Tensor:
        """See :class:`Encoding`.

        An edge that occurs twice in a node shares its row between its operations.
        """
        matrix = torch.zeros(self.mask.shape)
        for prefix, node, row in self._groups():
            for edge in range(2):
                state = sample[f"{prefix}input_{node}_{edge}"][0]
                column = 1 + self.operations.index(sample[f"{prefix}op_{node}_{edge}"])
                matrix[row + state, column] += 1
        total = matrix.sum(-1, keepdim=True)
        matrix = matrix / total.clamp(min=1)
        matrix[:, :1] = (total == 0).float()
        return matrix

    def shared(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
        """See :class:`Encoding`: edges with the same operation on the same state of a node."""

        def edges(sample: Mapping[str, Any]) -> Counter[tuple[Any, ...]]:
            return Counter(
                (p, n, sample[f"{p}op_{n}_{e}"], sample[f"{p}input_{n}_{e}"][0])
                for p, n, _ in self._groups()
                for e in range(2)
            )

        return sum((edges(first) & edges(second)).values())


def _values(label: str, mutable: Any) -> list[Any]:
    if isinstance(mutable, Categorical):
        return list(mutable.values)
    if isinstance(mutable, CategoricalMultiple) and mutable.n_chosen == 1:
        return [[value] for value in mutable.values]
    raise UserError(
        f"choice '{label}' ({type(mutable).__name__}) is not one of a few values, so it has no "
        "weights to search with"
    )


def _find_cells(choices: Mapping[str, Any]) -> dict[str, tuple[int, list[str]]] | None:
    """Cells whose choices are all two edges per node reading any earlier state; None: others."""
    found: dict[str, dict[tuple[str, int, int], Any]] = {}
    for label, mutable in choices.items():
        match = _EDGE.fullmatch(label)
        if match is None:
            return None
        place = (match["part"], int(match["node"]), int(match["edge"]))
        found.setdefault(match["cell"] or "", {})[place] = mutable
    cells: dict[str, tuple[int, list[str]]] = {}
    for prefix, parts in found.items():
        nodes = len({node for _, node, _ in parts})
        expected = {
            (part, node, edge)
            for part in ("op", "input")
            for node in range(2, 2 + nodes)
            for edge in range(2)
        }
        if set(parts) != expected:
            return None
        operations: list[str] = list(_values(prefix, parts["op", 2, 0]))
        for (part, node, _), mutable in parts.items():
            wanted = operations if part == "op" else [[state] for state in range(node)]
            if _values(prefix, mutable) != wanted:
                return None
        cells[prefix] = (nodes, operations)
    same = len({tuple(operations) for _, operations in cells.values()}) == 1
    return cells if same else None
