"""The findings' figures show the numbers of the findings, and can be drawn for any study."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest

from nni_robust.analysis import StudyRow, reject_by_fsp, robnet_topology, study_findings
from nni_robust.analysis.budget import budget_finding
from nni_robust.report.findings import (
    plot_budget,
    plot_density,
    plot_fsp_correlation,
    plot_fsp_gap,
    plot_probe,
)


def study(n, seed=0, cells=1, fsp=6):
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        rate = rng.uniform(0.3, 0.9)
        digits = 2 * (rng.random(14 * cells) < rate) + (rng.random(14 * cells) < rate)
        code = ["".join(map(str, digits[14 * c : 14 * c + 14])) for c in range(cells)]
        gap = rng.uniform(0.1, 0.4)
        rows.append(
            StudyRow(
                index,
                None,
                robnet_topology(code),
                rng.uniform(0.3, 0.5),
                fsp=tuple((gap * rng.uniform(0.5, 2, fsp)).tolist()),
                gap=gap,
            )
        )
    return rows


ROWS = study(60)
FOUND = study_findings(ROWS)


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def legend(figure):
    return [t.get_text() for box in figure.legends for t in box.get_texts()]


def points(collection):
    return np.asarray(collection.get_offsets())


def render(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="svg")
        figure.savefig(io.BytesIO(), format="png", dpi=50)


def test_density():
    figure = plot_density(ROWS, FOUND.density)
    (axes,) = figure.axes
    candidates, means = axes.collections
    assert points(candidates).tolist() == [[r.topology.density, 100 * r.robust] for r in ROWS]
    assert points(means).tolist() == [[b.density, 100 * b.robust] for b in FOUND.density.buckets]
    assert axes.get_ylabel() == "robust accuracy (%)"
    assert texts(figure) == [f"{FOUND.density.pearson}\n{FOUND.density.spearman}"]
    assert legend(figure)[0] == "candidate"
    render(figure)


def test_probe():
    probe = FOUND.density.probe
    figure = plot_probe(probe)
    (axes,) = figure.axes
    identity, convolution = axes.containers
    assert [bar.get_height() for bar in identity] == list(probe.weights[0::2])
    assert [bar.get_height() for bar in convolution] == list(probe.weights[1::2])
    assert legend(figure) == ["identity", "convolution"]
    assert len({bars[0].get_hatch() for bars in axes.containers}) == 2  # not by colour alone
    bold = [t.get_text() for t in axes.get_xticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["0→2", "1→2", "2→3", "3→4", "4→5"]
    right = axes.get_title(loc="right")
    assert f"fitted {100 * probe.train_accuracy:.1f} %" in right
    assert f"cross-validated {100 * probe.validated_accuracy:.1f} %" in right
    render(figure)


@pytest.mark.parametrize("definition", ["convs", "direct_edges"])
def test_budget(definition):
    finding = budget_finding(ROWS, definition=definition)
    figure = plot_budget(ROWS, finding)
    drawn = []
    for axes, group in zip(figure.axes, finding.groups, strict=True):
        assert f"n = {group.n}" in axes.get_title(loc="left")
        drawn += points(axes.collections[0]).tolist()
        assert len(axes.collections[0].get_offsets()) == group.n
        assert [t.get_text() for t in axes.texts] == [
            f"{group.pearson[definition]}\n{group.spearman[definition]}"
        ]
    expected = [[r.topology.direct_share(definition), 100 * r.robust] for r in ROWS]
    assert sorted(drawn) == sorted(expected)
    render(figure)


def test_the_line_of_a_budget_is_the_least_squares_fit():
    rows = [
        StudyRow(i, None, r.topology, 0.3 + 0.2 * r.topology.direct_share("convs"))
        for i, r in enumerate(ROWS)
    ]
    figure = plot_budget(rows, budget_finding(rows))
    for axes in figure.axes:
        x, y = axes.lines[0].get_data()
        assert np.asarray(y) == pytest.approx(30 + 20 * np.asarray(x))


def test_fsp_correlation():
    figure = plot_fsp_correlation(FOUND.fsp)
    (axes,) = figure.axes
    assert legend(figure) == ["the last 3", "Pearson", "Spearman"]
    for bars, kind in zip(axes.containers, ("pearson", "spearman"), strict=True):
        found = [getattr(cell, kind) for cell in FOUND.fsp.cells]
        marks, _, (ends,) = bars
        assert marks.get_ydata().tolist() == [c.value for c in found]
        drawn = [sorted(segment[:, 1]) for segment in ends.get_segments()]
        for segment, correlation in zip(drawn, found, strict=True):
            assert segment == pytest.approx([correlation.low, correlation.high])
    assert texts(figure)[0].startswith("mean of cells 3 to 5: Pearson")
    render(figure)


def test_fsp_gap():
    late = [(float(np.mean(r.fsp[-3:])), 100 * r.gap) for r in ROWS]
    (axes,) = plot_fsp_gap(ROWS).axes
    assert points(axes.collections[0]) == pytest.approx(np.array(late))
    assert axes.get_xlabel() == "FSP distance, mean of the last 3 cells"

    kept = reject_by_fsp([r.fsp for r in ROWS]).kept
    figure = plot_fsp_gap(ROWS, kept=kept)
    assert legend(figure) == ["kept", "rejected"]
    (axes,) = figure.axes
    assert points(axes.collections[0]) == pytest.approx(np.array([late[i] for i in kept]))
    assert len(axes.lines[0].get_xdata()) == 60 - len(kept)
    render(figure)


def test_fsp_gap_of_distances_over_many_orders_is_logarithmic():
    rows = [
        StudyRow(i, None, r.topology, r.robust, fsp=(10.0 ** (i % 7),), gap=r.gap)
        for i, r in enumerate(ROWS)
    ]
    figure = plot_fsp_gap(rows)
    assert figure.axes[0].get_xscale() == "log"
    render(figure)


CONSTANT = [StudyRow(i, None, ROWS[0].topology, 0.5, fsp=(1.0,), gap=0.1) for i in range(12)]


@pytest.mark.parametrize(
    "rows",
    [[], study(1), study(4), study(30, fsp=0), study(30, cells=3), CONSTANT],
    ids=["none", "one", "few", "without FSP", "cell-free", "constant"],
)
def test_any_study_can_be_drawn(rows):
    found = study_findings(rows)
    for figure in (
        plot_density(rows, found.density),
        plot_probe(found.density.probe),
        plot_budget(rows, found.budget),
        plot_fsp_correlation(found.fsp),
        plot_fsp_gap(rows),
    ):
        assert all(axes.get_xlabel() for axes in figure.axes)
        render(figure)


def test_empty_figures_say_why():
    found = study_findings([])
    assert texts(plot_density([], found.density)) == ["no candidates"]
    assert texts(plot_probe(found.density.probe)) == [
        "no probe: 0 candidates per class, at least 5 are needed"
    ]
    assert texts(plot_fsp_gap([])) == ["no FSP distances in this study"]
    assert texts(plot_fsp_correlation(found.fsp)) == ["no FSP distances in this study"]
    assert "no correlation" in texts(plot_budget([], found.budget))[0]
