"""Readable drawings of cells: data flows left to right, operations are lines, feature maps boxes.

Every operation of an edge is a line of its own, told apart by colour, line style and (in a single
drawing) its name on the line; the legend names them all. Missing edges are not drawn. Nothing
overlaps a box or a label, see :mod:`nni_robust.report._layout`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from nni_robust.architecture.graph import CellGraph
from nni_robust.report._layout import Box, Layout, Sizes, Strand, lay_out
from nni_robust.report._operations import Style, is_absent, operation_name, operation_styles
from nni_robust.report._style import GREY, INK, figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_cell", "draw_cells"]

PASS_ON = ("#9aa5b1", "-")  # lines to the output box
LABEL_SIZE, NODE_SIZE, SMALL_NODE_SIZE = 7.5, 8.5, 7.0


@dataclasses.dataclass(frozen=True)
class _Picture:
    graph: CellGraph
    edges: dict[tuple[str, str], tuple[str, ...]]
    output: str
    nodes: tuple[str, ...]


def draw_cell(graph: CellGraph, *, labels: bool = True) -> Figure:
    """Draw one cell.

    Parameters
    ----------
    graph
        The cell.
    labels
        Write each operation's name on its line (the legend names them in any case).

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``figure.savefig("cell.svg")`` or ``.png``.

    Raises
    ------
    ValueError
        If it has no nodes, or an edge names an unknown node or runs against the nodes' order.
    """
    return draw_cells([graph], labels=labels)


def draw_cells(
    graphs: Sequence[CellGraph],
    *,
    columns: int | None = None,
    labels: bool | None = None,
    title: str | None = None,
) -> Figure:
    """Draw several cells in a grid with one legend.

    Parameters
    ----------
    graphs
        The cells. Where more than two share their nodes, the same edge lies at the same place in
        all drawings, so that cells can be compared by eye.
    columns
        Drawings side by side; by default one for up to two labelled cells, else three.
    labels
        Write each operation's name on its line; by default only for one or two cells.
    title
        Heading of the whole figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is no cell or node, or an edge names an unknown node or runs against the order of
        the nodes.
    """
    if not graphs:
        raise ValueError("there is no cell to draw")
    labels = len(graphs) <= 2 if labels is None else labels
    columns = min(len(graphs), columns or (1 if labels and len(graphs) <= 2 else 3))
    pictures = [_picture(graph) for graph in graphs]
    styles = operation_styles(
        op for picture in pictures for ops in picture.edges.values() for op in ops if op
    )
    layouts = _layouts(pictures, _sizes(pictures, labels))

    # One panel of inches per cell; every panel has the size of the largest cell.
    width = max(layout.extent[1] - layout.extent[0] for layout in layouts) + 0.45
    height = max(layout.extent[3] - layout.extent[2] for layout in layouts) + 0.55
    rows = -(-len(graphs) // columns)
    total_width = max(columns * width, 4.0)
    handles = _handles(
        styles, any("" in ops for picture in pictures for ops in picture.edges.values())
    )
    widest = max((_width(str(h.get_label()), 8) for h in handles), default=0.0) + 0.85
    across = max(1, min(len(handles), int(total_width / widest)))
    heading, legend = (0.4 if title else 0.0), 0.2 + 0.18 * -(-len(handles) // across)
    total_height = rows * height + heading + legend
    canvas = figure(total_width, total_height)
    canvas.set_layout_engine("none")
    left = (total_width - columns * width) / 2
    for i, (picture, layout) in enumerate(zip(pictures, layouts, strict=True)):
        x = left + i % columns * width
        y = total_height - heading - (i // columns + 1) * height
        axes = canvas.add_axes(
            (x / total_width, y / total_height, width / total_width, height / total_height)
        )
        _draw(axes, picture, layout, styles, (width, height), labels)
    if title:
        canvas.text(
            0.5,
            1 - 0.2 / total_height,
            plain(title),
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            color=INK,
        )
    canvas.legend(
        handles=handles,
        loc="lower center",
        ncols=across,
        frameon=False,
        fontsize=8,
        handlelength=3.2,
        labelcolor=INK,
    )
    return canvas


def _picture(graph: CellGraph) -> _Picture:
    """Group parallel operations and add the output box where the graph has none."""
    if not graph.nodes:
        raise ValueError(f"{graph.title}: there are no nodes")
    place = {node: i for i, node in enumerate(graph.nodes)}
    edges: dict[tuple[str, str], list[str]] = {}
    for source, target, operation in graph.edges:
        if source not in place or target not in place:
            raise ValueError(f"{graph.title}: edge {source} -> {target} names an unknown node")
        if place[source] >= place[target]:
            raise ValueError(f"{graph.title}: edge {source} -> {target} runs backwards")
        if not is_absent(operation):
            edges.setdefault((source, target), []).append(operation)
    nodes, output = graph.nodes, ""
    if graph.outputs:
        output = graph.outputs[0]
        if len(graph.outputs) > 1 or any(source == output for source, _ in edges):
            output = "concat" if len(graph.outputs) > 1 else "output"
            while output in place:
                output += " "
            nodes = (*nodes, output)
            edges.update({(node, output): [""] for node in graph.outputs})
    return _Picture(graph, {edge: tuple(ops) for edge, ops in edges.items()}, output, nodes)


def _math(node: str) -> str:
    """Set names such as ``c_{k-2}`` and ``c(k-2)`` with a true index; others stay plain text."""
    match = re.fullmatch(r"([A-Za-z])(?:_\{([\w+-]+)\}|\(([\w+-]+)\))", node)
    return f"${match[1]}_{{{match[2] or match[3]}}}$" if match else plain(node)


def _width(text: str, size: float) -> float:
    return (
        float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0
    )


def _sizes(pictures: Sequence[_Picture], labels: bool) -> Sizes:
    operations = {op for p in pictures for ops in p.edges.values() for op in ops if op}
    size = NODE_SIZE if labels else SMALL_NODE_SIZE
    node = max(_width(_math(node), size) for p in pictures for node in p.nodes if node != p.output)
    last = (
        max((_width(_math(p.output), size) for p in pictures), default=0.0) + 0.16
    )  # written upwards
    if not labels:
        return Sizes(max(node + 0.12, 0.26), 0.2, 0.2, last, {}, 0.0, 0.065, 0.075, 0.36)
    widths = {op: _width(operation_name(op), LABEL_SIZE) + 0.14 for op in operations}
    return Sizes(max(node + 0.2, 0.34), 0.3, 0.26, last, widths, 0.16, 0.11, 0.12, 0.32)


def _layouts(pictures: Sequence[_Picture], sizes: Sizes) -> list[Layout]:
    first = pictures[0]
    same = len(pictures) > 2 and all(
        (p.nodes, p.graph.inputs, p.output) == (first.nodes, first.graph.inputs, first.output)
        and all(len(set(ops)) == len(ops) for ops in p.edges.values())
        for p in pictures
    )
    if not same:
        return [
            lay_out(p.nodes, p.edges, p.graph.inputs, p.output or None, sizes) for p in pictures
        ]
    union: dict[tuple[str, str], tuple[str, ...]] = {}
    for picture in pictures:
        for edge, operations in picture.edges.items():
            union[edge] = tuple(dict.fromkeys((*union.get(edge, ()), *operations)))
    whole = lay_out(first.nodes, union, first.graph.inputs, first.output or None, sizes)
    return [
        dataclasses.replace(
            whole,
            strands=tuple(
                s for s in whole.strands if s.operation in p.edges.get((s.source, s.target), ())
            ),
        )
        for p in pictures
    ]


def _draw(
    axes: Axes,
    picture: _Picture,
    layout: Layout,
    styles: dict[str, Style],
    panel: tuple[float, float],
    labels: bool,
) -> None:
    """Draw one cell on axes whose unit is the inch."""
    left, right, low, high = layout.extent
    axes.set_axis_off()
    centre, width = (left + right) / 2, panel[0]
    axes.set_xlim(centre - width / 2, centre + width / 2)
    top = (low + high) / 2 + (panel[1] - 0.35) / 2
    axes.set_ylim(top + 0.35 - panel[1], top + 0.35)
    axes.text(
        centre - width / 2 + 0.2,
        top + 0.17,
        plain(picture.graph.title),
        ha="left",
        va="center",
        fontsize=10 if labels else 8.5,
        fontweight="bold",
        color=INK,
    )
    ordered = sorted(layout.strands, key=lambda s: s.operation != "")  # grey lines lie below
    for strand in ordered:
        _draw_strand(
            axes, strand, *styles.get(strand.operation, PASS_ON), scale=1.0 if labels else 0.75
        )
    reached = {s.target for s in layout.strands} | set(picture.graph.inputs)
    for node, box in layout.boxes.items():
        _draw_box(
            axes, picture, node, box, node in reached, NODE_SIZE if labels else SMALL_NODE_SIZE
        )
    if labels:
        for strand in ordered:
            if strand.label and strand.operation:
                axes.text(
                    *strand.label,
                    operation_name(strand.operation),
                    ha="center",
                    va="center_baseline",
                    fontsize=LABEL_SIZE,
                    color=INK,
                    zorder=5,
                    bbox={"facecolor": "white", "edgecolor": "none", "boxstyle": "square,pad=0.12"},
                )


def _draw_strand(axes: Axes, strand: Strand, colour: str, style: Any, scale: float) -> None:
    head = 0.085 * scale
    points = [*strand.points[:-1], (strand.points[-1][0] - head * 0.8, strand.points[-1][1])]
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 == y1:
            vertices.append((x1, y1))
            codes.append(Path.LINETO)
        else:
            bend = 0.55 * (x1 - x0)
            vertices += [(x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
            codes += [Path.CURVE4] * 3
    line = Path(vertices, codes)
    thin = strand.operation == ""
    width = (1.0 if thin else 1.5) * scale
    # A white rim makes crossings read as one line passing over the other.
    axes.add_patch(
        PathPatch(line, fill=False, edgecolor="white", linewidth=width + 2.2 * scale, zorder=1)
    )
    axes.add_patch(
        PathPatch(line, fill=False, edgecolor=colour, linewidth=width, linestyle=style, zorder=1.1)
    )
    x, y = strand.points[-1]
    half = (0.028 if thin else 0.036) * scale
    tip = [(x, y), (x - head, y + half), (x - head, y - half)]
    axes.add_patch(Polygon(tip, closed=True, facecolor=colour, edgecolor="none", zorder=2))


def _draw_box(
    axes: Axes, picture: _Picture, node: str, box: Box, reached: bool, size: float
) -> None:
    if node in picture.graph.inputs:
        face, edge, ink = "#d9e2ec", "#627d98", INK
    elif node == picture.output:
        face, edge, ink = "#323f4b", "#323f4b", "white"
    elif reached:
        face, edge, ink = "white", "#323f4b", INK
    else:  # every edge into it is missing: it holds zeros
        face, edge, ink = "#f5f7fa", "#9aa5b1", GREY
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2, box.y - box.height / 2),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=face,
            edgecolor=edge,
            linewidth=1.1,
            linestyle="-" if reached else (0, (2, 2)),
            zorder=3,
        )
    )
    axes.text(
        box.x,
        box.y,
        _math(node),
        rotation=90 if node == picture.output else 0,
        ha="center",
        va="center",
        fontsize=size,
        color=ink,
        zorder=4,
    )


def _handles(styles: dict[str, Style], passes_on: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, linestyle=style, linewidth=1.8, label=operation_name(op))
        for op, (colour, style) in styles.items()
    ]
    if passes_on:
        handles.append(Line2D([], [], color=PASS_ON[0], linewidth=1.0, label="passed on"))
    return handles
