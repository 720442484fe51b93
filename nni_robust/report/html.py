"""HTML reports without outside references: of one run, also unfinished, and of several compared."""

from __future__ import annotations

import datetime
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import nni_robust
from nni_robust.errors import UserError
from nni_robust.report import _format as fmt
from nni_robust.report._compare import comparison_page
from nni_robust.report._page import run_page
from nni_robust.report._run import Run, read_run
from nni_robust.store import write_text

__all__ = ["build_comparison", "build_report", "read_runs"]


def build_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the HTML report of a run.

    Parameters
    ----------
    run_folder
        Run folder; whatever it holds already is shown, and what is missing is named.
    out
        File to write; by default ``report.html`` in the run folder.

    Returns
    -------
    pathlib.Path
        The written file. It needs no network and no other file.

    Raises
    ------
    UserError
        If `run_folder` is no run folder, or `out` cannot be written.
    """
    run = read_run(run_folder)
    path = Path(out) if out is not None else run.folder / "report.html"
    return _write(path, _render("run.html.j2", run_page(run)))


def build_comparison(run_folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one HTML page that compares several runs.

    What differs in their settings is told first, and where data, threat, recipe or attacks differ
    the page warns that the figures do not measure the searches alone.

    Parameters
    ----------
    run_folders
        Two or more run folders. Each one's own report, where there is one, is linked.
    out
        File to write; by default ``comparison.html`` in the folder that holds all the runs.

    Returns
    -------
    pathlib.Path
        The written file. It needs no network and no other file.

    Raises
    ------
    UserError
        If there are fewer than two runs, one is given twice or is no run folder, or `out` cannot
        be written.
    """
    runs = read_runs(run_folders)
    whole = [run.folder.resolve() for run in runs]
    path = Path(out) if out is not None else Path(os.path.commonpath(whole)) / "comparison.html"
    return _write(path, _render("comparison.html.j2", comparison_page(runs, path)))


def read_runs(run_folders: Sequence[str | Path]) -> list[Run]:
    """The runs that a comparison compares.

    Raises
    ------
    UserError
        If there are fewer than two, one is given twice, or one is no run folder.
    """
    if len(run_folders) < 2:
        raise UserError("a comparison needs at least two run folders")
    whole = [Path(folder).resolve() for folder in run_folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise UserError(f"run folder '{run_folders[place]}' is given twice")
    return [read_run(folder) for folder in run_folders]


def _write(path: Path, page: str) -> Path:
    try:
        write_text(path, page)
    except OSError as e:
        raise UserError(f"cannot write the report '{path}': {e.strerror or e}") from None
    return path


def _source(name: str) -> str | None:
    """Text of a template; also of the style and the script, which pages hold as they are."""
    file = importlib.resources.files("nni_robust.report").joinpath("templates", name)
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _asset(name: str) -> Markup:
    return Markup(_source(name) or "")  # Safe: a file of this package.


def _render(template: str, context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=fmt.percent, count=fmt.count, exact=fmt.exact, duration=fmt.duration
    )
    environment.globals.update(
        asset=_asset,
        version=nni_robust.__version__,
        made=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return environment.get_template(template).render(context)
