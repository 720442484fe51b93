"""Figures show the numbers that they were given."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest

from nni_robust.report import (
    Candidates,
    plot_best_so_far,
    plot_choices,
    plot_corruptions,
    plot_eps_curves,
    plot_pareto,
    plot_scores,
    plot_steps_curves,
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


def test_pareto_panels_mark_their_fronts():
    candidates = Candidates(ROBUST, CLEAN, MACS, [4e6, 3e6, 2e6, 1e6, 5e6], chosen=1)
    figure = plot_pareto({"": candidates}, attack="PGD-20")
    macs, params, clean = figure.axes
    assert line(macs, "on the Pareto front") == [(1, 30), (2, 50), (4, 60)]
    # The first has most parameters and least robustness; the fifth is the most robust of all.
    assert line(params, "on the Pareto front") == [(1, 60), (5, 90)]
    assert line(clean, "on the Pareto front") == [(90, 90), (95, 40)]
    # On the front of all three, though not on that of robustness and MACs: only the third.
    together = "on the front of robust, clean and MACs together"
    assert line(macs, together) == [(3, 40)]
    assert line(clean, together) == [(70, 30), (90, 50), (80, 60)]
    assert line(macs, "chosen") == [(2, 50)]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "MACs (millions, one picture)",
        "parameters (millions)",
        "clean accuracy (%)",
    ]
    assert macs.get_ylabel() == "robust accuracy, PGD-20 (%)"
    render(figure)


def test_pareto_of_what_is_known_and_of_several_searches():
    only = plot_pareto({"": Candidates([0.5], params=[1e6])})
    assert [axes.get_xlabel() for axes in only.axes] == ["parameters (millions)"]
    one = Candidates([0.3, 0.5], macs=[1e6, 2e6])
    other = Candidates([0.4, None], macs=[9e7, 1e6])
    figure = plot_pareto({"a": one, "b$": other})
    (axes,) = figure.axes
    assert line(axes, "a") == [(1, 30), (2, 50)]
    assert line(axes, r"b\$") == [(90, 40)]  # each search has a front of its own
    markers = {x.get_marker() for x in axes.lines if x.get_label() in ("a", r"b\$")}
    assert len(markers) == 2
    assert axes.get_xscale() == "log"
    render(figure)


def test_steps_curves_are_sorted_on_a_logarithmic_axis():
    figure = plot_steps_curves({"a": [(20, 0.2), (1, 0.9), (5, None)], "b": []}, eps=0.1)
    (axes,) = figure.axes
    points = line(axes, "a")
    assert (points[0], points[2]) == ((1, 90), (20, 20))
    assert np.isnan(points[1][1])
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "5", "20"]
    assert axes.get_xlabel() == "steps of PGD, eps 0.1"
    render(figure)


def test_best_so_far_of_several_searches():
    figure = plot_best_so_far({"a": [None, 0.2, 0.5, 0.3], "b": [0.4]})
    (axes,) = figure.axes
    assert line(axes, "a")[1:] == [(2, 20), (3, 50), (4, 50)]
    assert np.isnan(line(axes, "a")[0][1])
    assert line(axes, "b") == [(1, 40)]
    render(figure)


def test_topology_map_counts_the_best_quarter_against_all():
    # Of eight candidates the best two (scores 8 and 7) both have "conv" at edge 1.
    samples = [{"1": "conv" if i > 4 else "skip", "2": "none", "3": i % 2} for i in range(8)]
    figure = plot_choices(samples, [i + 1 for i in range(8)], samples[7])
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "3"]  # "2" never differs
    told = [t.get_text() for t in axes.texts]
    # Edge 1: conv 100 % of the best, 3 of 8 of all (+62); skip 0 %, 5 of 8 (−62).
    assert {*zip(told[::2], told[1::2], strict=True)} == {
        ("100", "+62"), ("0", "−62"), ("50", "±0"),
    }  # fmt: skip
    assert len(axes.patches) == 2  # a frame around each option that was chosen
    render(figure)
    assert plot_choices(samples[:7], range(7)) is None
    assert plot_choices([{"a": i} for i in range(20)], range(20)) is None  # too many options


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
    [
        plot_pareto({"": Candidates([])}),
        plot_pareto({}),
        plot_eps_curves({}),
        plot_corruptions({}),
        plot_steps_curves({}),
        plot_training({}),
        plot_scores([(0, None)]),
        plot_best_so_far({"a": [None]}),
    ],
    ids=["pareto", "none", "eps", "corruptions", "steps", "training", "scores", "best"],
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
