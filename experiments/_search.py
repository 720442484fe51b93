"""The search itself, from the strategy's first model to the report, on whichever engine runs it.

Two doors lead here: ``nni-robust run`` (:mod:`.runner`), which starts NNI itself, and ``nnictl
create`` (:mod:`.nnictl`), where NNI starts us as its tuner.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from nni_robust.architecture.space import open_space
from nni_robust.data import DataSplits
from nni_robust.errors import UserError
from nni_robust.nni_adapter.waiting import wait_for
from nni_robust.report import build_report
from nni_robust.store import Store, write_yaml

from ._final import best_candidate, count_networks, finish, save_best
from ._findings import write_findings
from ._preflight import build_parts
from ._records import Recorder
from ._state import RunState
from ._trials import manager_ip, serves_store, trial_code
from .schema import Experiment

__all__ = ["Nni", "count_trials", "search"]


class Nni(Protocol):
    """What runs the models: NNI started by us, or NNI that started us."""

    @property
    def id(self) -> str:
        """NNI's name of the experiment."""

    @property
    def engine(self) -> Any:
        """The execution engine, once it runs."""

    @property
    def executable_space(self) -> Any:
        """NNI's executable model space, which makes the models."""

    def start(self) -> None:
        """Run the strategy; returns when it is done."""

    def stop(self) -> None:
        """End everything that was started."""


#: From space, evaluator, strategy, the most models of the search, those of all, and a function to
#: call with the running engine.
Opener = Callable[[Any, Any, Any, int, int, Callable[[Any], None]], Nni]


def search(
    settings: Experiment,
    run: Path,
    data: DataSplits,
    store: Path,
    open_nni: Opener,
    *,
    url: str | None,
    html: bool,
    report: Callable[[str], None],
) -> None:
    """Search, train the final networks, write the report.

    Parameters
    ----------
    settings
        The experiment, already checked.
    run
        Its run folder.
    data
        Its data, without the test split.
    store
        Folder where the trials keep their results.
    open_nni
        Makes what runs the models.
    url
        Of the web UI, if there is one.
    html
        Write ``report.html`` at the end.
    report
        Takes one line of progress.
    """
    state = RunState(run, settings, store)
    with _ending(state):
        write_yaml(run / "config.yaml", settings.as_mapping())
        space, evaluator, strategy = build_parts(settings, data, str(store))
        trials = count_trials(settings, strategy)
        candidates = int(getattr(strategy, "candidates", trials))
        part = settings.space
        asked = open_space(part.name, part.arguments, data.num_classes)
        recorder = Recorder(
            run,
            Store(store),
            report,
            candidates,
            trials - candidates,
            getattr(asked, "attributes", None),
        )

        def on_engine(engine: Any) -> None:
            recorder.listen(engine)
            if url is not None:
                report(f"web UI: {url}  (NNI serves it on all interfaces, without a password)")
            state.started(nni.id, url)

        nni = open_nni(
            space, evaluator, strategy, trials, trials + count_networks(settings), on_engine
        )
        status = "failed"
        code = trial_code(settings, run)
        with _served(settings, code, store), _inside(code):
            try:
                nni.start()
                wait_for(nni.engine, nni.engine.models)  # NNI's own strategies do not
                if hasattr(strategy, "export"):
                    strategy.export(run)
                best = _best(run, strategy, candidates)
                write_findings(run, settings.seed, report)
                if best is not None:
                    save_best(run, settings, data, best)
                    if settings.final is not None:
                        report("the search is done; training the final networks")
                    learned = (
                        strategy.final_settings() if hasattr(strategy, "final_settings") else {}
                    )
                    finish(
                        run,
                        settings,
                        data,
                        nni.executable_space,
                        nni.engine,
                        best,
                        learned,
                        state.final_begins,
                    )
                status = "finished"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                try:
                    # On a full disk the news is what stopped the run.
                    with contextlib.suppress(*([] if status == "finished" else [OSError])):
                        state.ended(status)
                finally:
                    nni.stop()
                if html:
                    with contextlib.suppress(UserError, OSError):
                        build_report(run)


@contextlib.contextmanager
def _ending(state: RunState) -> Iterator[None]:
    """Write how the run ended where nothing inside did, as when it is stopped while it begins."""
    try:
        yield
    except BaseException as e:
        if state.value["status"] == "running":
            with contextlib.suppress(OSError):
                state.ended("interrupted" if isinstance(e, KeyboardInterrupt) else "failed")
        raise


def _best(run: Path, strategy: Any, candidates: int) -> dict[str, Any] | None:
    """The winner's record; None where the search was made for something else than a winner."""
    if not candidates:
        return None
    if not hasattr(strategy, "winner"):
        return best_candidate(run)
    winner = strategy.winner()
    return None if winner is None else best_candidate(run, winner["sample"])


def count_trials(settings: Experiment, strategy: Any) -> int:
    """Most models that the search submits, phases included."""
    return int(getattr(strategy, "trials", None) or settings.nni.trials or 1)


def _served(
    settings: Experiment, code: Path, store: Path
) -> contextlib.AbstractContextManager[Any]:
    """Serve the store to the trials, where they cannot reach it as files."""
    if not serves_store(settings):
        return contextlib.nullcontext()
    from nni_robust.store_server import make_token, serve_store

    host, port = manager_ip(settings), settings.nni.store_port
    return serve_store(store, make_token(code), host, port)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in the folder of the trial code: NNI sends the current directory to the trials."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
