"""Drawings of cells: complete, without overlaps, and laid out by an exact relaxation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from nni_robust.architecture.graph import CellGraph
from nni_robust.report._layout import Sizes, lay_out
from nni_robust.report._operations import operation_name, operation_styles
from nni_robust.report._spread import apart
from nni_robust.report.drawing import draw_cell, draw_cells

NODES = ("s0", "s1", "f1", "f2", "f3", "f4")
EDGES = [(s, t) for t in range(2, 6) for s in range(t)]
LABELLED = Sizes(0.4, 0.3, 0.26, 0.6, {"conv": 0.4, "skip": 0.3}, 0.16, 0.11, 0.12, 0.32)
PLAIN = Sizes(0.3, 0.2, 0.2, 0.5, {}, 0.0, 0.065, 0.075, 0.36)


def robnet(code: str, title: str = "cell") -> CellGraph:
    """A cell from a RobNet code: per edge 0 nothing, 1 conv, 2 skip, 3 both."""
    operations = {"0": (), "1": ("conv",), "2": ("skip",), "3": ("conv", "skip")}
    edges = tuple(
        (NODES[s], NODES[t], op)
        for (s, t), digit in zip(EDGES, code, strict=True)
        for op in operations[digit]
    )
    return CellGraph(title, NODES, edges, NODES[:2], NODES[2:])


codes = st.text("0123", min_size=14, max_size=14)


def rectangles(layout, sizes):
    """(left, right, low, high) of all boxes, then of all labels."""
    boxes = {
        name: (b.x - b.width / 2, b.x + b.width / 2, b.y - b.height / 2, b.y + b.height / 2)
        for name, b in layout.boxes.items()
    }
    labels = [
        (x - w / 2, x + w / 2, y - sizes.label_height / 2, y + sizes.label_height / 2)
        for s in layout.strands
        if s.label
        for (x, y), w in [(s.label, sizes.label_widths.get(s.operation, 0.0))]
    ]
    return boxes, labels


def overlap(a, b):
    e = 1e-9
    return a[0] < b[1] - e and b[0] < a[1] - e and a[2] < b[3] - e and b[2] < a[3] - e


@settings(deadline=None, max_examples=25)
@given(code=codes, sizes=st.sampled_from([LABELLED, PLAIN]))
def test_nothing_overlaps(code, sizes):
    graph = robnet(code)
    edges = {}
    for source, target, operation in graph.edges:
        edges.setdefault((source, target), []).append(operation)
    edges |= {(node, "out"): [""] for node in graph.outputs}
    layout = lay_out((*NODES, "out"), edges, graph.inputs, "out", sizes)

    boxes, labels = rectangles(layout, sizes)
    everything = [*boxes.values(), *labels]
    assert not any(overlap(a, b) for i, a in enumerate(everything) for b in everything[:i])
    left, right, low, high = layout.extent
    for a in everything:
        assert a[0] >= left - 1e-9
        assert a[1] <= right + 1e-9
        assert a[2] >= low - 1e-9
        assert a[3] <= high + 1e-9

    assert len(layout.strands) == sum(map(len, edges.values()))
    for strand in layout.strands:
        # From the source's right side to the target's left side, always forward.
        assert strand.points[0][0] == pytest.approx(boxes[strand.source][1])
        assert strand.points[-1][0] == pytest.approx(boxes[strand.target][0])
        xs = [x for x, _ in strand.points]
        assert xs == sorted(xs)
        # Flat pieces run between ports in pairs; they, and only they, pass layers with boxes.
        pieces = list(zip(strand.points[1:-1:2], strand.points[2:-1:2], strict=True))
        for (x0, y0), (x1, y1) in pieces:
            assert y0 == y1
            assert not any(b[0] < x1 and x0 < b[1] and b[2] < y0 < b[3] for b in boxes.values())
        curves = [strand.points[0], *strand.points[1:-1], strand.points[-1]]
        for (x0, _), (x1, _) in zip(curves[::2], curves[1::2], strict=True):
            assert not any(b[0] < x1 - 1e-9 and x0 + 1e-9 < b[1] for b in boxes.values())
    ends = [strand.points[-1] for strand in layout.strands]
    assert len(set(ends)) == len(ends)  # no two arrows end at one place


@settings(deadline=None)
@given(data=st.data(), n=st.integers(1, 8))
def test_relaxation_step_is_the_exact_projection(data, n):
    """Against scikit-learn's isotonic regression."""
    numbers = st.lists(st.floats(-5, 5), min_size=n, max_size=n)
    positive = st.lists(st.floats(0.1, 5), min_size=n, max_size=n)
    wish, force, heights = data.draw(numbers), data.draw(positive), data.draw(positive)
    gap = data.draw(st.floats(0, 1))
    placed = apart(wish, force, heights, gap)
    offsets = np.concatenate(
        [[0.0], np.cumsum([(a + b) / 2 + gap for a, b in itertools.pairwise(heights)])]
    )
    regression = IsotonicRegression(increasing=False)
    expected = regression.fit_transform(np.arange(n), np.array(wish) + offsets, sample_weight=force)
    assert placed == pytest.approx(list(expected - offsets), abs=1e-6)


def test_a_chain_is_a_straight_line():
    edges = {("a", "b"): ["conv"], ("b", "c"): ["conv"]}
    layout = lay_out(("a", "b", "c"), edges, ("a",), "c", PLAIN)
    assert len({round(box.y, 9) for box in layout.boxes.values()}) == 1


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_every_operation_is_labelled_and_in_the_legend():
    graph = robnet("33123210120232")
    figure = draw_cell(graph)
    shown = texts(figure)
    assert shown.count("conv") == 7  # RobNet-small: 7 convolutions, 9 identities
    assert shown.count("skip") == 9
    assert {*NODES, "concat", "cell"} <= set(shown)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["conv", "skip", "passed on"]


def test_cells_of_a_grid_share_their_layout(tmp_path):
    graphs = [robnet(code, f"cell {i}") for i, code in enumerate(["3" * 14, "1" * 14, "0" * 14])]
    figure = draw_cells(graphs, title="all $ three")
    assert len(figure.axes) == 3
    places = [
        {t.get_text(): t.get_position() for t in axes.texts if t.get_text() in NODES}
        for axes in figure.axes
    ]
    assert places[0] == places[1] == places[2]
    for suffix in ("svg", "png"):
        figure.savefig(tmp_path / f"cells.{suffix}")
        assert (tmp_path / f"cells.{suffix}").stat().st_size > 5000


def test_operations_are_told_apart_by_colour_and_by_style():
    names = ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "max_pool_3x3", "skip_connect", "odd"]
    styles = operation_styles(names)
    assert len({colour for colour, _ in styles.values()}) == len(names)
    assert len({str(style) for _, style in styles.values()}) == len(names) - 1  # "odd" is the ninth
    assert operation_styles(["sep conv 3x3"])["sep conv 3x3"] == styles["sep_conv_3x3"]
    assert operation_name("sep_conv_3x3") == "sep conv 3×3"


def test_missing_operations_are_not_drawn():
    graph = CellGraph("c", ("a", "b"), (("a", "b", "none"), ("a", "b", "conv")), ("a",), ("b",))
    assert "none" not in texts(draw_cell(graph))


def test_dollar_signs_and_markup_are_plain_text(tmp_path):
    nodes = ("<b>", r"$\bad$", "c_{k-1}")
    edges = ((nodes[0], nodes[1], "$x$"), (nodes[1], nodes[2], "a_b"))
    draw_cell(CellGraph("$1 & $2", nodes, edges, nodes[:1], nodes[2:])).savefig(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").is_file()


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (CellGraph("c", ("a", "b"), (("a", "z", "conv"),), ("a",), ("b",)), "unknown node"),
        (CellGraph("c", ("a", "b"), (("b", "a", "conv"),), ("a",), ("b",)), "backwards"),
        (CellGraph("c", (), (), (), ()), "no nodes"),
    ],
)
def test_malformed_graphs_are_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        draw_cell(graph)


def test_no_cells_are_refused():
    with pytest.raises(ValueError, match="no cell"):
        draw_cells([])
