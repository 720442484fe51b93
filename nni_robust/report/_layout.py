"""Where the boxes and lines of a cell drawing go: a small layered graph layout, left to right.

The classical four steps (K. Sugiyama, S. Tagawa, M. Toda, "Methods for visual understanding of
hierarchical system structures", 1981):

1. every node gets a layer, the length of its longest path from an input;
2. an edge that passes a layer gets a *lane* there, an item of its own, so that no line ever runs
   through a box; one lane per edge is wide enough for its label;
3. the items of each layer are ordered for few crossings (barycentre sweeps, then swaps);
4. items get heights: edges as straight as possible, items apart
   (:mod:`nni_robust.report._spread`).

Lengths are inches, y points up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from nni_robust.report._spread import Item, spread

__all__ = ["Box", "Layout", "Sizes", "Strand", "lay_out"]

Edge = tuple[str, str]
SWEEPS = 24


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Lengths of a drawing in inches.

    Parameters
    ----------
    node_width, node_height
        Smallest box of a node.
    last_width, last_height
        Smallest box of the last node.
    label_widths
        Width of the label of each operation; empty draws no labels.
    label_height
        Height of a line that carries a label.
    pitch
        Distance of parallel lines of one edge, and of the ports on the side of a box.
    gap
        Smallest vertical distance of neighbouring boxes and edges.
    bend
        Horizontal room for the curves between two layers.
    """

    node_width: float
    node_height: float
    last_width: float
    last_height: float
    label_widths: Mapping[str, float]
    label_height: float
    pitch: float
    gap: float
    bend: float


@dataclasses.dataclass(frozen=True)
class Box:
    """A node's rectangle: centre and size."""

    x: float
    y: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Strand:
    """One operation of one edge: a line through `points`, drawn flat at each and curved between.

    `points` come in pairs (start and end of a flat piece), the first and last are ports on boxes.
    `label` is the centre of the label, None where the strand has none.
    """

    source: str
    target: str
    operation: str
    points: tuple[tuple[float, float], ...]
    label: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Boxes by node name, and the extent (left, right, bottom, top) of everything."""

    boxes: Mapping[str, Box]
    strands: tuple[Strand, ...]
    extent: tuple[float, float, float, float]


def lay_out(
    nodes: Sequence[str],
    edges: Mapping[Edge, Sequence[str]],
    inputs: Sequence[str],
    last: str | None,
    sizes: Sizes,
) -> Layout:
    """Lay out a directed acyclic graph.

    Parameters
    ----------
    nodes
        Names in topological order.
    edges
        Operations of each (source, target); an edge with an empty operation name gets no label.
    inputs
        Nodes of the first layer; nothing else stands there.
    last
        A node that gets a layer of its own at the right, or None.
    sizes
        Lengths to use.

    Returns
    -------
    Layout
        One strand per operation. Boxes, lanes and labels never overlap one another.
    """
    layer = _layers(nodes, edges, inputs, last)
    step = 2 if sizes.label_widths else 1  # with labels, every second layer holds labels only
    layer = {node: step * value for node, value in layer.items()}
    columns, links = _items(nodes, edges, layer)
    _order(columns, links)
    labelled = {
        edge: (layer[edge[0]] + layer[edge[1]]) // 4 * 2 + 1
        for edge, operations in edges.items()
        if step == 2 and any(operations)
    }
    heights = _heights(columns, edges, labelled, last, sizes)
    ys = spread(columns, links, heights, sizes.gap)
    widths = [sizes.node_width if i % step == 0 else 0.0 for i in range(len(columns))]
    for edge, i in labelled.items():
        widths[i] = max(widths[i], *(sizes.label_widths.get(op, 0.0) for op in edges[edge]))
    if last is not None:
        widths[layer[last]] = sizes.last_width
    xs = [sum(widths[:i]) + widths[i] / 2 + sizes.bend * i for i in range(len(columns))]

    boxes = {
        node: Box(
            xs[layer[node]],
            ys[layer[node], ("node", node)],
            widths[layer[node]],
            heights[layer[node], ("node", node)],
        )
        for node in nodes
    }
    strands = _route(edges, layer, boxes, xs, widths, ys, labelled, sizes)
    low = min(ys[key] - heights[key] / 2 for key in ys)
    high = max(ys[key] + heights[key] / 2 for key in ys)
    return Layout(boxes, strands, (0.0, xs[-1] + widths[-1] / 2, low, high))


def _layers(
    nodes: Sequence[str],
    edges: Mapping[Edge, Sequence[str]],
    inputs: Sequence[str],
    last: str | None,
) -> dict[str, int]:
    layer = {node: 0 if node in inputs else 1 for node in nodes}
    for node in nodes:  # topological order: sources are final when they are read
        before = [layer[source] + 1 for source, target in edges if target == node]
        layer[node] = max([layer[node], *before])
    if last is not None:
        layer[last] = max(value for node, value in layer.items() if node != last) + 1
    used = {value: i for i, value in enumerate(sorted(set(layer.values())))}
    return {node: used[value] for node, value in layer.items()}


def _items(
    nodes: Sequence[str], edges: Mapping[Edge, Sequence[str]], layer: Mapping[str, int]
) -> tuple[list[list[Item]], list[list[tuple[Item, Item]]]]:
    """Items per layer, and the pairs of items that edges join between layers i and i + 1."""
    depth = max(layer.values(), default=0) + 1
    columns: list[list[Item]] = [[] for _ in range(depth)]
    links: list[list[tuple[Item, Item]]] = [[] for _ in range(depth - 1)]
    for node in nodes:
        columns[layer[node]].append(("node", node))
    for source, target in edges:
        before: Item = ("node", source)
        for i in range(layer[source] + 1, layer[target] + 1):
            here: Item = ("node", target) if i == layer[target] else ("lane", source, target)
            if here not in columns[i]:
                columns[i].append(here)
            links[i - 1].append((before, here))
            before = here
    return columns, links


def _crossings(columns: list[list[Item]], links: list[list[tuple[Item, Item]]]) -> int:
    total = 0
    for i, pairs in enumerate(links):
        left = {item: k for k, item in enumerate(columns[i])}
        right = {item: k for k, item in enumerate(columns[i + 1])}
        ends = sorted((left[a], right[b]) for a, b in pairs)
        total += sum(
            ends[p][1] > ends[q][1] and ends[p][0] < ends[q][0]
            for p in range(len(ends))
            for q in range(p + 1, len(ends))
        )
    return total


def _order(columns: list[list[Item]], links: list[list[tuple[Item, Item]]]) -> None:
    """Order the items of every layer in place; the first layer keeps its order."""
    best = [list(column) for column in columns]
    fewest = _crossings(columns, links)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for i in range(1, len(columns)) if forward else range(len(columns) - 2, 0, -1):
            fixed = columns[i - 1] if forward else columns[i + 1]
            place = {item: k for k, item in enumerate(fixed)}
            pairs = links[i - 1] if forward else [(b, a) for a, b in links[i]]
            mean: dict[Item, float] = {}
            for k, item in enumerate(columns[i]):
                ends = [place[a] for a, b in pairs if b == item]
                mean[item] = sum(ends) / len(ends) if ends else float(k)
            columns[i].sort(key=lambda item: mean[item])
        _swap(columns, links)
        crossings = _crossings(columns, links)
        if crossings < fewest:
            fewest, best = crossings, [list(column) for column in columns]
    columns[:] = best


def _swap(columns: list[list[Item]], links: list[list[tuple[Item, Item]]]) -> None:
    """Exchange neighbours while that removes crossings."""
    for i in range(1, len(columns)):
        near = slice(max(i - 1, 0), i + 2)
        between = slice(max(i - 1, 0), i + 1)
        for k in range(len(columns[i]) - 1):
            old = _crossings(columns[near], links[between])
            columns[i][k], columns[i][k + 1] = columns[i][k + 1], columns[i][k]
            if _crossings(columns[near], links[between]) >= old:
                columns[i][k], columns[i][k + 1] = columns[i][k + 1], columns[i][k]


def _heights(
    columns: list[list[Item]],
    edges: Mapping[Edge, Sequence[str]],
    labelled: Mapping[Edge, int],
    last: str | None,
    sizes: Sizes,
) -> dict[tuple[int, Item], float]:
    heights = {}
    for i, column in enumerate(columns):
        for item in column:
            if item[0] == "node":
                ports = max(
                    sum(len(ops) for (_, target), ops in edges.items() if target == item[1]),
                    sum(len(ops) for (source, _), ops in edges.items() if source == item[1]),
                )
                least = sizes.last_height if item[1] == last else sizes.node_height
                height = max(least, (ports + 1) * sizes.pitch)
            else:
                edge = (item[1], item[2])
                each = sizes.label_height if labelled.get(edge) == i else sizes.pitch
                height = len(edges[edge]) * each
            heights[i, item] = height
    return heights


def _route(
    edges: Mapping[Edge, Sequence[str]],
    layer: Mapping[str, int],
    boxes: Mapping[str, Box],
    xs: list[float],
    widths: list[float],
    ys: Mapping[tuple[int, Item], float],
    labelled: Mapping[Edge, int],
    sizes: Sizes,
) -> tuple[Strand, ...]:
    """Lines of all operations, with ports on each box in the order in which the lines arrive."""
    middle: dict[tuple[Edge, int], list[tuple[float, float]]] = {}
    labels: dict[tuple[Edge, int], tuple[float, float]] = {}
    for edge, operations in edges.items():
        for k in range(len(operations)):
            points = []
            for i in range(layer[edge[0]] + 1, layer[edge[1]]):
                here = labelled.get(edge) == i
                each = sizes.label_height if here else sizes.pitch
                y = ys[i, ("lane", *edge)] + ((len(operations) - 1) / 2 - k) * each
                points += [(xs[i] - widths[i] / 2, y), (xs[i] + widths[i] / 2, y)]
                if here:
                    labels[edge, k] = (xs[i], y)
            middle[edge, k] = points

    ports: dict[tuple[Edge, int, str], tuple[float, float]] = {}
    for node, box in boxes.items():
        for side, end in (("out", 0), ("in", 1)):
            mine = [key for key in middle if key[0][end] == node]
            other = 1 - end
            mine.sort(
                key=lambda key: (
                    -(middle[key][-end][1] if middle[key] else boxes[key[0][other]].y),
                    key[1],
                )
            )
            for place, (edge, k) in enumerate(mine):
                y = box.y + ((len(mine) - 1) / 2 - place) * sizes.pitch
                x = box.x + (0.5 - end) * box.width
                ports[edge, k, side] = (x, y)
    return tuple(
        Strand(
            *edge,
            operation,
            (ports[edge, k, "out"], *middle[edge, k], ports[edge, k, "in"]),
            labels.get((edge, k)),
        )
        for edge, operations in edges.items()
        for k, operation in enumerate(operations)
    )
