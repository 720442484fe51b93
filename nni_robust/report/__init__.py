"""Tables, plots, cell drawings and the self-contained HTML report of a run.

Every ``plot_…`` and ``draw_…`` takes plain numbers and returns a matplotlib figure, outside pyplot.
The names below are imported on first use: a program that only prints a table loads no matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_robust.report._choices import plot_choices as plot_choices
    from nni_robust.report._comparison import plot_comparison as plot_comparison
    from nni_robust.report._compression import plot_compression as plot_compression
    from nni_robust.report._corruptions import plot_corruptions as plot_corruptions
    from nni_robust.report._examples import Examples as Examples
    from nni_robust.report._examples import plot_examples as plot_examples
    from nni_robust.report._examples import read_examples as read_examples
    from nni_robust.report._fronts import Candidates as Candidates
    from nni_robust.report._fronts import plot_pareto as plot_pareto
    from nni_robust.report._spectrum import plot_spectra as plot_spectra
    from nni_robust.report._study import read_findings as read_findings
    from nni_robust.report._tutors import plot_tutors as plot_tutors
    from nni_robust.report._tutors import read_tutors as read_tutors
    from nni_robust.report._wide_spectrum import plot_wide_spectrum as plot_wide_spectrum
    from nni_robust.report.drawing import draw_cell as draw_cell
    from nni_robust.report.drawing import draw_cells as draw_cells
    from nni_robust.report.findings import plot_budget as plot_budget
    from nni_robust.report.findings import plot_density as plot_density
    from nni_robust.report.findings import plot_fsp_correlation as plot_fsp_correlation
    from nni_robust.report.findings import plot_fsp_gap as plot_fsp_gap
    from nni_robust.report.findings import plot_probe as plot_probe
    from nni_robust.report.html import build_comparison as build_comparison
    from nni_robust.report.html import build_report as build_report
    from nni_robust.report.plots import plot_best_so_far as plot_best_so_far
    from nni_robust.report.plots import plot_eps_curves as plot_eps_curves
    from nni_robust.report.plots import plot_scores as plot_scores
    from nni_robust.report.plots import plot_steps_curves as plot_steps_curves
    from nni_robust.report.plots import plot_training as plot_training
    from nni_robust.report.tables import candidates_table as candidates_table
    from nni_robust.report.tables import final_table as final_table
    from nni_robust.report.tables import to_csv as to_csv

_HOMES = {
    "Candidates": "_fronts",
    "Examples": "_examples",
    "build_comparison": "html",
    "build_report": "html",
    "candidates_table": "tables",
    "draw_cell": "drawing",
    "draw_cells": "drawing",
    "final_table": "tables",
    "plot_best_so_far": "plots",
    "plot_budget": "findings",
    "plot_choices": "_choices",
    "plot_comparison": "_comparison",
    "plot_compression": "_compression",
    "plot_corruptions": "_corruptions",
    "plot_density": "findings",
    "plot_eps_curves": "plots",
    "plot_examples": "_examples",
    "plot_fsp_correlation": "findings",
    "plot_fsp_gap": "findings",
    "plot_pareto": "_fronts",
    "plot_probe": "findings",
    "plot_scores": "plots",
    "plot_spectra": "_spectrum",
    "plot_steps_curves": "plots",
    "plot_training": "plots",
    "plot_tutors": "_tutors",
    "plot_wide_spectrum": "_wide_spectrum",
    "read_examples": "_examples",
    "read_findings": "_study",
    "read_tutors": "_tutors",
    "to_csv": "tables",
}
__all__ = [
    "Candidates",
    "Examples",
    "build_comparison",
    "build_report",
    "candidates_table",
    "draw_cell",
    "draw_cells",
    "final_table",
    "plot_best_so_far",
    "plot_budget",
    "plot_choices",
    "plot_comparison",
    "plot_compression",
    "plot_corruptions",
    "plot_density",
    "plot_eps_curves",
    "plot_examples",
    "plot_fsp_correlation",
    "plot_fsp_gap",
    "plot_pareto",
    "plot_probe",
    "plot_scores",
    "plot_spectra",
    "plot_steps_curves",
    "plot_training",
    "plot_tutors",
    "plot_wide_spectrum",
    "read_examples",
    "read_findings",
    "read_tutors",
    "to_csv",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
