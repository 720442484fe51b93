"""Figures show the numbers that they were given."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest

from nni_robust.report.plots import (
    Highlight,
    plot_eps_curves,
    plot_scores,
    plot_tradeoff,
    plot_training,
)

MACS = [1e6, 2e6, 3e6, 4e6, None]
ROBUST = [0.30, 0.50, 0.40, 0.60, 0.9]
CLEAN = [0.70, 0.90, 0.95, 0.80, 0.9]


def line(axes, label):
    (found,) = [x for x in axes.lines if x.get_label() == label]
    x, y = (np.asarray(values, dtype=float).round(9).tolist() for values in found.get_data())
    return list(zip(x, y, strict=True))


def render(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="svg")
        figure.savefig(io.BytesIO(), format="png", dpi=50)


def test_tradeoff_marks_the_pareto_fronts():
    marks = [Highlight("x", 2e6, 0.5, 0.9)]
    figure = plot_tradeoff(MACS, ROBUST, CLEAN, attack="PGD-20", highlights=marks)
    cost, clean = figure.axes
    assert line(cost, "on the Pareto front") == [(1, 30), (2, 50), (4, 60)]
    # Most robust with clean accuracy 90 is the candidate without known MACs.
    assert line(clean, "on the Pareto front") == [(90, 90), (95, 40)]
    assert line(cost, "x") == [(2, 50)]
    assert cost.get_xlabel() == "MACs (millions, one picture)"
    assert cost.get_ylabel() == "robust accuracy, PGD-20 (%)"
    assert clean.get_xlabel() == "clean accuracy (%)"
    render(figure)


def test_tradeoff_without_clean_has_one_panel():
    figure = plot_tradeoff([1e6], [0.5], kind="params")
    assert [axes.get_xlabel() for axes in figure.axes] == ["parameters (millions)"]
    render(figure)


def test_eps_curves_are_sorted_percent_and_named():
    figure = plot_eps_curves({"a": [(0.1, 0.2), (0, 0.9), (0.05, None)], "b$": []}, eps=0.1)
    axes = figure.axes[0]
    points = line(axes, "a")
    assert points[0] == (0, 90)
    assert points[2] == (0.1, 20)
    assert np.isnan(points[1][1])
    assert axes.get_xlabel() == "eps (pixel units, L∞)"
    assert axes.get_ylabel() == "accuracy (%)"
    render(figure)
    l2 = plot_eps_curves({"a": [(0.5, 0.2)]}, norm="l2")
    assert l2.axes[0].get_xlabel() == "eps (pixel units, L2)"
    render(l2)


def test_training_curves_skip_epochs_without_validation():
    history = [
        {"epoch": 0, "loss": 2.0, "val_clean": None, "val_robust": None},
        {"epoch": 1, "loss": 1.0, "val_clean": 0.8, "val_robust": 0.5},
    ]
    figure = plot_training({"run": history, "empty": []})
    loss, clean, robust = figure.axes
    assert line(loss, "run") == [(0, 2), (1, 1)]
    assert line(clean, "run") == [(1, 80)]
    assert line(robust, "run") == [(1, 50)]
    render(figure)


def test_scores_show_the_best_so_far_and_the_failed():
    figure = plot_scores([(3, 0.4), (1, 0.5), (2, None), (4, 0.6)])
    (axes,) = figure.axes
    assert line(axes, "best so far") == [(1, 50), (3, 50), (4, 60)]
    assert line(axes, "failed") == [(2, 0)]
    render(figure)


@pytest.mark.parametrize(
    "figure",
    [plot_tradeoff([], [], []), plot_eps_curves({}), plot_training({}), plot_scores([(0, None)])],
    ids=["tradeoff", "eps", "training", "scores"],
)
def test_nothing_to_show_is_an_empty_figure(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty legend
        figure.savefig(io.BytesIO(), format="svg")


def test_pyplot_is_never_loaded_and_tables_load_no_matplotlib():
    script = (
        "import sys, nni_robust.report, nni_robust.report.tables\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import nni_robust.report.plots, nni_robust.report.drawing, nni_robust.report.html\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
