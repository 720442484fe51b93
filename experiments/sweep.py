"""Sweeps: one experiment under every combination of some settings, with seeds, in one command.

A sweep file names a base experiment and its axes::

    name: rnascl-ablation
    base: rnascl-digits              # a shipped experiment, or the path of a file
    set: {final.limit: 200}          # changes of every run
    axes:
      strategy.mapping: [searched, random, none]     # values of one key
      training:                                      # or named sets of changes
        clean: {final.train.loss: clean}
        trades: {final.train.loss: trades, final.train.beta: 6}
      seed: [0, 1, 2]
    share_store: true                # equal trials of different runs are computed once

Each combination is an ordinary run in a folder of its own, which can be looked at, resumed and
reported alone. A killed sweep goes on with ``--resume``; what is finished is not repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import filelock

from nni_robust.config import as_mapping, parse, read_yaml, strict
from nni_robust.errors import UserError
from nni_robust.nni_adapter.terminal import terminate_as_interrupt
from nni_robust.store import read_json, write_json, write_yaml

from ._sweep_table import doubtful_runs, write_tables
from .runner import run_experiment
from .schema import check_name, find_experiment, load_experiment

__all__ = ["Sweep", "load_sweep", "run_sweep"]


@dataclasses.dataclass(frozen=True)
class Compare:
    """A comparison of searches over one axis, see :mod:`nni_robust.analysis.comparison`.

    Parameters
    ----------
    axis
        Name of the axis whose values are compared.
    against
        The value that all others are compared with.
    score
        Metric of the candidates that a search maximises.
    """

    axis: str
    against: str
    score: str = "default"

    __pydantic_config__ = strict


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Parameters
    ----------
    name
        Also names the folder below ``runs``.
    base
        The experiment: a shipped name, or a path (relative to the sweep file).
    axes
        Axis to its values: a list of values of the key that the axis is called, or a mapping from
        labels to ``{key: value}`` changes.
    set
        ``{key: value}`` changes of every run.
    share_store
        One store for all runs.
    compare
        Also compare the searches.
    """

    name: str
    base: str
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]]
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    share_store: bool = False
    compare: Compare | None = None

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        check_name("name", self.name)
        if not self.axes or any(not values for values in self.axes.values()):
            raise UserError("axes: at least one axis with at least one value is needed")
        if self.compare is not None:
            values = [str(value) for value in self.axes.get(self.compare.axis, ())]
            if self.compare.against not in values:
                raise UserError(
                    f"compare.against: {self.compare.against!r} is no value of the axis "
                    f"'{self.compare.axis}' (allowed: {', '.join(values) or 'none'})"
                )


@dataclasses.dataclass(frozen=True)
class Run:
    """One combination.

    Parameters
    ----------
    folder
        Name of its folder.
    values
        Axis to label.
    overrides
        Changes of the base experiment, as ``nni-robust run --set`` takes them.
    """

    folder: str
    values: dict[str, Any]
    overrides: tuple[str, ...]


def load_sweep(path: str | Path) -> tuple[Sweep, list[Run]]:
    """Read a sweep file; every combination is checked as an experiment.

    Parameters
    ----------
    path
        Name of a shipped sweep, or path of a YAML file.

    Raises
    ------
    UserError
        On the first thing that is wrong, naming the combination.
    """
    path = find_experiment(str(path), "sweeps")
    raw = {"name": Path(path).stem, **read_yaml(path)}
    sweep = parse(Sweep, raw, "the sweep")
    beside = Path(path).parent / sweep.base
    if beside.is_file():
        sweep = dataclasses.replace(sweep, base=str(beside.resolve()))
    runs = list(_combinations(sweep))
    taken: dict[str, Run] = {}
    for run in runs:
        if run.folder in taken:
            raise UserError(f"axes: {run.values} and {taken[run.folder].values} look the same")
        taken[run.folder] = run
        load_experiment(sweep.base, run.overrides)
    return sweep, runs


def _combinations(sweep: Sweep) -> Iterator[Run]:
    options: list[list[tuple[str, Any, dict[str, Any]]]] = []
    for axis, values in sweep.axes.items():
        if isinstance(values, dict):
            options.append([(axis, label, dict(changes)) for label, changes in values.items()])
        else:
            options.append([(axis, value, {axis: value}) for value in values])
    for combination in itertools.product(*options):
        changes = dict(sweep.set)
        for _, _, own in combination:
            changes.update(own)
        labels = {axis: label for axis, label, _ in combination}
        name = "_".join(f"{axis.rpartition('.')[2]}-{label}" for axis, label in labels.items())
        overrides = tuple(f"{key}={json.dumps(value)}" for key, value in changes.items())
        yield Run(re.sub(r"[^\w.+-]+", "-", name), labels, overrides)


def run_sweep(
    path: str | Path,
    *,
    out: str | None = None,
    resume: bool = False,
    jobs: int = 1,
    only: Mapping[str, Sequence[str]] | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Path, list[dict[str, Any]]]:
    """Run or resume a sweep.

    Parameters
    ----------
    path
        Name of a shipped sweep, or path of a sweep file.
    out
        Folder of the sweep; None is ``runs/<name>``.
    resume
        Go on in that folder.
    jobs
        Runs at a time, each in a process of its own where there is more than one.
    only
        Axis to the labels that are run now; the tables hold whatever is finished.
    report
        Takes one line for each run that ends.

    Returns
    -------
    The folder, and the rows of its table.

    Raises
    ------
    UserError
        On anything that cannot be done, before any work.
    KeyboardInterrupt
        On Ctrl-C; the sweep can be resumed.
    """
    sweep, runs = load_sweep(path)
    chosen = _only(sweep, runs, only or {})
    folder = Path(out or Path("runs", sweep.name)).resolve()
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise UserError(
            f"output folder '{folder}' is not empty; add --resume to go on, or choose another"
        )
    _same_sweep(folder, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(str(folder / ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"sweep folder '{folder}' is in use by another process") from None
    try:
        write_yaml(folder / "sweep.yaml", as_mapping(sweep))
        waiting = [run for run in chosen if _status(folder / run.folder) != "finished"]
        report(f"{len(runs)} runs, {len(waiting)} of them to do")
        store = str(folder / "store") if sweep.share_store else None
        work = [(sweep.base, run.overrides, str(folder / run.folder), store) for run in waiting]
        with terminate_as_interrupt():
            for done, (job, error) in enumerate(_results(work, jobs), 1):
                name = Path(job[2]).name
                report(f"[{done}/{len(work)}] {name}: {error or 'finished'}")
        rows = write_tables(folder, sweep, runs)
        if doubt := doubtful_runs(runs, rows):
            report(doubt)
    finally:
        lock.release()
    return folder, rows


def _only(sweep: Sweep, runs: list[Run], only: Mapping[str, Sequence[str]]) -> list[Run]:
    for axis, labels in only.items():
        known = [str(label) for label in sweep.axes.get(axis, ())]
        for label in labels:
            if label not in known:
                raise UserError(
                    f"--only {axis}={label}: no such value (axes: {', '.join(sweep.axes)}; values "
                    f"of {axis}: {', '.join(known) or 'none'})"
                )
    return [
        run for run in runs if all(str(run.values[axis]) in labels for axis, labels in only.items())
    ]


def _same_sweep(folder: Path, sweep: Sweep) -> None:
    """Refuse a folder that holds the runs of another sweep; more values of an axis are welcome."""
    if not (folder / "sweep.yaml").is_file():
        return
    kept = parse(Sweep, read_yaml(folder / "sweep.yaml"), "sweep.yaml")
    for key in ("base", "set", "share_store"):
        if getattr(kept, key) != getattr(sweep, key):
            raise UserError(
                f"'{folder}' was started with other settings: {key} was "
                f"{getattr(kept, key)!r}, now it is {getattr(sweep, key)!r}"
            )
    if list(kept.axes) != list(sweep.axes):
        raise UserError(
            f"'{folder}' was started with other axes: {', '.join(kept.axes)}; now they are "
            f"{', '.join(sweep.axes)}"
        )


def _status(folder: Path) -> str | None:
    state = folder / "run.json"
    return str(read_json(state)["status"]) if state.is_file() else None


_Job = tuple[str, tuple[str, ...], str, "str | None"]


def _results(work: list[_Job], jobs: int) -> Iterator[tuple[_Job, str | None]]:
    if jobs <= 1:
        for job in work:
            yield job, _run_one(job)
        return
    # A fresh interpreter for each worker: torch and NNI do not survive a fork with threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(_run_one, job): job for job in work}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()  # its run ends as by Ctrl-C and can be resumed
            raise


def _run_one(job: _Job) -> str | None:
    """One run; why it failed, or None. One failed run does not end the others."""
    base, overrides, folder, store = job
    begun = (Path(folder) / "config.yaml").is_file()
    try:
        with contextlib.redirect_stdout(None):
            run_experiment(
                base,
                out=folder,
                resume=begun,
                overrides=overrides,
                store=store,
                html=False,
                report=lambda line: None,
            )
    except Exception as e:  # the reason goes into the table
        message = f"{type(e).__name__}: {e}" if not isinstance(e, UserError) else str(e)
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "error.json", {"error": message})
        return f"failed: {message}"
    (Path(folder) / "error.json").unlink(missing_ok=True)
    return None
