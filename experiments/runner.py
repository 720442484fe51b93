"""Run an experiment: search, final training, report; stop at any moment and go on later."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import yaml

from nni_robust.errors import UserError
from nni_robust.store import read_json

from .schema import Experiment, load_experiment, shipped

__all__ = [
    "open_run",
    "run_experiment",
    "store_folder",
    "terminate_as_interrupt",
    "trial_threads",
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
    from ._preflight import check_port, check_writable, preflight
    from ._search import search

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
        with terminate_as_interrupt():
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
    finally:
        lock.release()


def store_folder(run: Path, asked: str | None) -> Path:
    if asked is not None:
        return Path(asked).resolve()
    kept = read_json(run / "run.json").get("store") if (run / "run.json").is_file() else None
    return Path(kept) if kept else run / "store"


def _stop_orphans(run: Path, report: Callable[[str], None]) -> None:
    """End what a killed process of this run left behind: NNI's manager and its trials."""
    if not (run / "run.json").is_file():
        return
    from nni_robust.nni_adapter.experiment import stop_orphan

    for earlier in read_json(run / "run.json")["nni"]:
        if stop_orphan(earlier["id"]):
            report(f"stopped NNI experiment {earlier['id']}, left over from a killed run")


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM ends the run as Ctrl-C does: NNI stopped, the folder resumable."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        return load_experiment(str(folder / "config.yaml"), changes), folder.resolve()
    settings = load_experiment(experiment, changes)
    if not resume:
        run = Path(out) if out else _free(Path("runs", settings.name))
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UserError(
                f"output folder '{run}' is not empty; add --resume to go on, or choose another"
            )
        return settings, run.resolve()
    run = Path(out) if out else _latest(Path("runs", settings.name))
    if not (run / "config.yaml").is_file():
        raise UserError(f"nothing to resume: '{run}' holds no run")
    _same_settings(run, settings)
    return settings, run.resolve()


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for n in range(2, 10_000):
        yield base.with_name(f"{base.name}-{n}")


def _free(base: Path) -> Path:
    return next(p for p in _numbered(base) if not p.exists())


def _latest(base: Path) -> Path:
    taken = [p for p in _numbered(base) if (p / "config.yaml").is_file()]
    return max(taken, key=lambda p: (p / "config.yaml").stat().st_mtime, default=base)


def _same_settings(run: Path, settings: Experiment) -> None:
    """Refuse to go on under other settings: the results in the folder would not fit them."""
    kept = _flat(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    asked = _flat(settings.as_mapping())
    changed = [
        f"{key}: {kept.get(key, '(absent)')!r} there, {asked.get(key, '(absent)')!r} now"
        for key in sorted({*kept, *asked})
        if kept.get(key) != asked.get(key) and not key.startswith("nni.")
    ]
    if changed:
        raise UserError(f"'{run}' was started with other settings: {'; '.join(changed)}")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


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

        silence_stdout()
        self.experiment = RobustNasExperiment(
            space,
            evaluator,
            strategy,
            _nni_config(self.settings, self.run, total),
            budget=trials,
            environment=trial_threads(self.settings),
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

    from ._preflight import training_service

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
    return config


def trial_threads(settings: Experiment) -> dict[str, str]:
    """Trials side by side share the cores; torch would give every one of them all."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = settings.nni.trial_threads or max(1, cores // settings.nni.concurrency)
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
