"""Tables, plots, cell drawings and the self-contained HTML report of a run.

The names below are imported on first use: a program that only prints a table loads no matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_robust.report._compression import plot_compression as plot_compression
    from nni_robust.report._study import read_findings as read_findings
    from nni_robust.report.drawing import draw_cell as draw_cell
    from nni_robust.report.drawing import draw_cells as draw_cells
    from nni_robust.report.html import build_report as build_report
    from nni_robust.report.tables import candidates_table as candidates_table
    from nni_robust.report.tables import final_table as final_table
    from nni_robust.report.tables import to_csv as to_csv

_HOMES = {
    "build_report": "html",
    "candidates_table": "tables",
    "draw_cell": "drawing",
    "draw_cells": "drawing",
    "final_table": "tables",
    "plot_compression": "_compression",
    "read_findings": "_study",
    "to_csv": "tables",
}
__all__ = [
    "build_report",
    "candidates_table",
    "draw_cell",
    "draw_cells",
    "final_table",
    "plot_compression",
    "read_findings",
    "to_csv",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
