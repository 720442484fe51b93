"""Run an experiment: search, final training, report; stop at any moment and go on later."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from nni_robust.errors import UserError, disk_full
from nni_robust.nni_adapter.terminal import check_port, terminate_as_interrupt
from nni_robust.store import check_space, full_sentence

from ._state import other_settings, read_state
from .schema import Experiment, load_experiment, shipped

__all__ = [
    "open_run",
    "run_experiment",
    "store_folder",
]


def run_experiment(
    experiment: str,
    *,
    out: str | None = None,
    resume: bool = False,
    port: int | None = None,
    overrides: Sequence[str] = (),
    store: str | None = None,
    html: bool = True,
    report: Callable[[str], None] = print,
) -> Path:
    """Run or resume an experiment.

    Parameters
    ----------
    experiment
        Name of a shipped experiment, path of a YAML file, or, to resume, a run folder.
    out
        Run folder; None is ``runs/<name>``, numbered where that is taken (or, to resume, the
        latest).
    resume
        Go on with a stopped run. No finished trial is repeated.
    port
        Port of NNI's web server, instead of the file's.
    overrides
        ``section.key=value`` changes of the file.
    store
        Folder where the trials keep their results, so that several runs can share them; None is
        one inside the run folder (or, to resume, the one it began with).
    html
        Write ``report.html`` at the end.
    report
        Takes one line of progress.

    Returns
    -------
    The run folder.

    Raises
    ------
    UserError
        On anything that cannot be done, before any work.
    KeyboardInterrupt
        On Ctrl-C, after NNI was stopped and the run folder says "interrupted".
    """
    settings, run = open_run(experiment, out, resume, port, overrides)
    # Imported only now: a mistake in the file is told without waiting for torch and NNI.
    from ._preflight import check_writable, preflight
    from ._search import search
    from ._trials import check_started_by_run

    check_started_by_run(settings)
    is_new = not run.exists()
    check_writable(run)
    lock = filelock.FileLock(str(run / ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"run folder '{run}' is in use by another nni-robust process") from None
    try:
        _stop_orphans(run, report)
        if settings.nni.engine == "ts":
            check_port(settings.nni.port)
        data = preflight(settings)
        with terminate_as_interrupt(), told_if_full(run, store_folder(run, store)):
            search(
                settings,
                run,
                data,
                store_folder(run, store),
                _StartedNni(settings, run),
                url=f"http://127.0.0.1:{settings.nni.port}"
                if settings.nni.engine == "ts"
                else None,
                html=html,
                report=report,
            )
            return run
    except UserError:
        if is_new and _untouched(run):  # refused before any work; one that is stopped can go on
            shutil.rmtree(run, ignore_errors=True)
        raise
    finally:
        lock.release()


def store_folder(run: Path, asked: str | None) -> Path:
    if asked is not None:
        return Path(asked).resolve()
    kept = (read_state(run) or {}).get("store")
    return Path(kept) if kept else run / "store"


def _stop_orphans(run: Path, report: Callable[[str], None]) -> None:
    """End what a killed process of this run left behind: NNI's manager and its trials."""
    state = read_state(run)
    kept = [str(entry["id"]) for entry in (state or {"nni": []})["nni"]]
    # Where run.json was lost, NNI's own folders have the names of their experiments.
    there = sorted(p.name for p in run.glob("nni/*") if p.is_dir() and not p.is_symlink())
    experiments = list(dict.fromkeys([*kept, *there]))
    if not experiments:
        return
    from nni_robust.nni_adapter.experiment import stop_orphan

    for experiment in experiments:
        if stop_orphan(experiment):
            report(f"stopped NNI experiment {experiment}, left over from a killed run")


@contextlib.contextmanager
def told_if_full(run: Path, store: Path) -> Iterator[None]:
    """Where a run ends for want of space, say so, whatever went wrong first.

    Raises
    ------
    UserError
        Naming the folder.
    """
    # NNI's log lies in the run folder: a line that cannot be written must not print a traceback.
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    except Exception as e:
        for folder in (store, run):
            check_space(folder)
        if disk_full(e):
            raise UserError(full_sentence(run)) from e
        raise
    finally:
        logging.raiseExceptions = before


def open_run(
    experiment: str, out: str | None, resume: bool, port: int | None, overrides: Sequence[str]
) -> tuple[Experiment, Path]:
    """The checked settings and the run folder, which is not made yet."""
    changes = [*overrides, *([f"nni.port={port}"] if port is not None else [])]
    folder = Path(experiment)
    if (folder / "config.yaml").is_file() and (resume or experiment not in shipped()):
        if not resume:
            raise UserError(f"'{experiment}' is a run folder; add --resume to go on with it")
        if out is not None and Path(out).resolve() != folder.resolve():
            raise UserError(f"--out '{out}' is not the run folder '{experiment}' to resume")
        settings = load_experiment(str(folder / "config.yaml"), changes)
        same_settings(folder, settings, new_final=True)
        return settings, folder.resolve()
    settings = load_experiment(experiment, changes)
    if not resume:
        run = Path(out) if out else _free(Path("runs", settings.name))
        if run.exists() and not _untouched(run):
            raise UserError(
                f"output folder '{run}' is not empty; add --resume to go on, or choose another"
            )
        return settings, run.resolve()
    run = Path(out) if out else _latest(Path("runs", settings.name))
    if not (run / "config.yaml").is_file():
        if run.is_dir() and any(run.iterdir()) and _untouched(run):
            return settings, run.resolve()  # killed before any work
        raise UserError(f"nothing to resume: '{run}' holds no run")
    same_settings(run, settings, new_final=True)
    return settings, run.resolve()


def _untouched(run: Path) -> bool:
    """Whether a folder is empty, or a run in it was killed before it did anything."""
    early = (".lock", ".writable", "run.json", ".run.json.", ".config.yaml.")
    return run.is_dir() and all(p.name.startswith(early) for p in run.iterdir())


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for n in range(2, 10_000):
        yield base.with_name(f"{base.name}-{n}")


def _free(base: Path) -> Path:
    return next(p for p in _numbered(base) if not p.exists())


def _latest(base: Path) -> Path:
    taken = [p for p in _numbered(base) if (p / "config.yaml").is_file()]
    return max(taken, key=lambda p: (p / "config.yaml").stat().st_mtime, default=base)


def same_settings(run: Path, settings: Experiment, *, new_final: bool = False) -> None:
    """Refuse to go on under other settings: the results in the folder would not fit them.

    Parameters
    ----------
    new_final
        Those below ``final`` may change until the first final network has begun.

    Raises
    ------
    UserError
        With every setting that is another than when the run was begun.
    """
    changed = other_settings(run, settings, new_final=new_final)
    if changed:
        also = " at any time, and final.* until the first final network has begun"
        raise UserError(
            f"'{run}' was begun with other settings: {changed}. Only nni.* may change"
            f"{also if new_final else ''}; undo the change, or start a new run in another folder"
        )


class _StartedNni:
    """NNI as we start it: our experiment class, with the settings of the file."""

    def __init__(self, settings: Experiment, run: Path) -> None:
        self.settings, self.run = settings, run

    def __call__(
        self,
        space: Any,
        evaluator: Any,
        strategy: Any,
        trials: int,
        total: int,
        on_engine: Callable[[Any], None],
    ) -> _StartedNni:
        from nni.runtime.log import silence_stdout

        from nni_robust.nni_adapter.experiment import RobustNasExperiment

        from ._trials import trial_environment, trial_interpreter

        silence_stdout()
        self.experiment = RobustNasExperiment(
            space,
            evaluator,
            strategy,
            _nni_config(self.settings, self.run, total),
            budget=trials,
            environment=trial_environment(self.settings),
            interpreter=trial_interpreter(self.settings),
            on_engine=on_engine,
        )
        return self

    @property
    def id(self) -> str:
        return str(self.experiment.id)

    @property
    def engine(self) -> Any:
        return self.experiment.engine

    @property
    def executable_space(self) -> Any:
        return self.experiment._exec_model_space

    def start(self) -> None:
        from nni.experiment import RunMode

        # Detached, the manager writes to its own log and not to this terminal.
        self.experiment.start(self.settings.nni.port, run_mode=RunMode.Detach)

    def stop(self) -> None:
        self.experiment.stop()


def _nni_config(settings: Experiment, run: Path, trials: int) -> Any:
    from nni.nas.experiment import NasExperimentConfig

    from ._trials import manager_ip, platform, training_service

    nni = settings.nni
    config = NasExperimentConfig(nni.engine, "simplified", "local")
    config.experiment_name = settings.name
    config.experiment_working_directory = run / "nni"
    if nni.engine == "sequential":
        config.execution_engine.continue_on_failure = True
        return config
    config.trial_concurrency = nni.concurrency
    config.max_trial_number = trials
    config.trial_gpu_number = nni.trial_gpus
    config.training_service = training_service(settings)
    if platform(settings) != "local":
        config.nni_manager_ip = manager_ip(settings)
    return config
