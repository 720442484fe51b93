"""A drawing-ready picture of one cell or stage, independent of any search space."""

from __future__ import annotations

import dataclasses

__all__ = ["CellGraph"]


@dataclasses.dataclass(frozen=True)
class CellGraph:
    """A directed acyclic graph of feature maps (nodes) and operations (edges).

    A space offers ``cell_graphs(sample) -> list[CellGraph]``; every renderer works from this form.

    Parameters
    ----------
    title
        Such as ``"cells 0-19"`` or ``"cell 6 (reduction)"``.
    nodes
        Node names in topological order; the first ones are inputs.
    edges
        ``(source node, target node, operation)``; parallel operations are separate entries.
    inputs, outputs
        Names of the nodes that come from outside, and of those that are concatenated or passed on.
    """

    title: str
    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str, str], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
