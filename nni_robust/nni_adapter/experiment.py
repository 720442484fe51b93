"""NNI's NAS experiment with the repairs that a search needs, and with results that are never lost.

* `BoundChannel` in front of the trial command, `ReadableModelSpace` as the trial's parameters.
* NNI gives its node manager three seconds to start, which a busy machine does not keep; here a
  minute.
* NNI's listener thread dies on commands it does not know (the manager sends ``ImportData`` and
  ``AddCustomizedTrialJob``) and the search then waits for ever; here they are skipped.
* An exception in a strategy's callback kills that thread as well; here it is kept and raised in the
  main thread by the next call of the engine.
* Engines answer models whose results are in the store at once, without a trial (`replay`).
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from nni.experiment import launcher
from nni.nas.execution import SequentialExecutionEngine, training_service
from nni.nas.execution.training_service import TrainingServiceExecutionEngine
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.runtime.tuner_command_channel import TunerCommandChannel, command_type

from nni_robust.errors import UserError
from nni_robust.nni_adapter import TRIAL_SCRIPT, check_version
from nni_robust.nni_adapter.channel import TRIAL_ENVIRONMENT
from nni_robust.nni_adapter.replay import ReplayMixin
from nni_robust.nni_adapter.spaces import ReadableModelSpace
from nni_robust.store import write_text

__all__ = ["RobustNasExperiment", "stop_orphan"]

_log = logging.getLogger(__name__)

_GONE = "NNI's manager does not answer any more; finished trials are kept, go on with --resume ({})"

_START_PATIENCE = 60  # tries, one a second


class _TolerantChannel(TunerCommandChannel):
    """Skips the commands that NNI's NAS engine does not know, and keeps why it ended."""

    lost: BaseException | None = None

    def receive(self) -> Any:
        while True:
            try:
                return super().receive()
            except ValueError as e:  # noqa: PERF203
                if "Unknown command type" not in str(e):
                    raise
                _log.debug("skipped a command of the manager: %s", e)
            except Exception as e:  # in a thread, which would print a traceback and be gone
                self.lost = e
                return command_type.Terminate()


class _ServiceEngine(ReplayMixin, TrainingServiceExecutionEngine):
    def check_alive(self) -> None:
        super().check_alive()
        try:
            status = self.nodejs_binding.get_status()
        except requests.RequestException as e:
            raise UserError(_GONE.format(type(e).__name__)) from e
        if status in ("STOPPED", "ERROR"):
            raise UserError(
                f"NNI's experiment is in status {status}; finished trials are kept, go on with "
                "--resume"
            )
        if self._channel.lost is not None:
            raise UserError(
                "the connection to NNI's manager was lost; finished trials are kept, go on with "
                f"--resume ({type(self._channel.lost).__name__})"
            )

    def _start(self, model: Any) -> None:
        try:
            super()._start(model)
        except UserError:
            raise
        except Exception:
            self.check_alive()  # to a dead manager NNI's channel says only that it has no socket
            raise

    def allow_another(self) -> None:
        trials = int(self.nodejs_binding.get_experiment_profile()["params"]["maxTrialNumber"])
        self.nodejs_binding.update_max_trial_number(trials + 1)

    def dispatch_model_event(self, event: Any, **kwargs: Any) -> None:
        try:
            super().dispatch_model_event(event, **kwargs)
        except Exception as e:  # in the listener's thread: raised where the strategy calls next
            if not isinstance(e, UserError):
                _log.exception("a callback failed")
            self.callback_error = e


class _SequentialEngine(ReplayMixin, SequentialExecutionEngine):
    retries = 0


class RobustNasExperiment(NasExperiment):
    """`nni.nas.experiment.NasExperiment` with the repairs of this module.

    Parameters
    ----------
    model_space, evaluator, strategy, config
        As for NNI's class. The current directory is the one whose content is sent to the trials'
        machines; it must not be a folder whose files hide installed packages.
    budget
        Most models that the strategy may submit, replayed ones included; None is no limit of ours.
    environment
        Environment variables of the trial processes.
    interpreter
        What stands before ``-m MODULE`` in a trial's command; None is this Python.
    on_engine
        Called with the engine once NNI runs and before the strategy starts.
    """

    def __init__(
        self,
        model_space: Any,
        evaluator: Any,
        strategy: Any,
        config: NasExperimentConfig,
        *,
        budget: int | None = None,
        environment: dict[str, str] | None = None,
        interpreter: str | None = None,
        on_engine: Callable[[Any], None] | None = None,
    ) -> None:
        check_version()
        super().__init__(model_space, evaluator, strategy, config)
        self.budget, self.on_engine = budget, on_engine
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        given = self.config._trial_command_params or {}
        envs = " ".join([given.get("envs", ""), *variables, TRIAL_ENVIRONMENT]).strip()
        python = interpreter or given.get("python", shlex.quote(sys.executable))
        self._trial_script = f'exec env {envs} {python} "$@"\n'
        short = {"envs": "", "python": f"bash {TRIAL_SCRIPT}"}
        self.config._trial_command_params = {**given, **short}

    @property
    def engine(self) -> Any:
        """The running engine; it takes models of the final phase after the strategy is done."""
        return self._engine

    def executable_model_factory(self, config: Any) -> Any:
        if config.name == "simplified":
            return ReadableModelSpace.from_model(self.model_space, self.evaluator)
        return super().executable_model_factory(config)

    def execution_engine_factory(self, config: Any) -> Any:
        if config.name == "ts":
            with _swapped(training_service, "TunerCommandChannel", _TolerantChannel):
                engine: Any = _ServiceEngine(self)
        elif config.name == "sequential":
            engine = _SequentialEngine(None, config.max_duration, config.continue_on_failure)
        else:
            return super().execution_engine_factory(config)
        engine.budget = self.budget
        if self.on_engine is not None:
            self.on_engine(engine)
        return engine

    def _start_nni_manager(self, *args: Any, **kwargs: Any) -> None:
        def patient(port: int, retry: int = _START_PATIENCE, url_prefix: str | None = None) -> None:
            check(port, retry, url_prefix)

        write_text(Path.cwd() / TRIAL_SCRIPT, self._trial_script)
        check = launcher._check_rest_server
        with _swapped(launcher, "_check_rest_server", patient):
            super()._start_nni_manager(*args, **kwargs)

    def start(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().start(*args, **kwargs)
        except UserError:
            raise
        except Exception as e:  # whatever NNI was about to ask its manager
            manager = getattr(self, "_proc", None)
            if manager is None or manager.poll() is None:
                raise
            raise UserError(_GONE.format(type(e).__name__)) from e

    def stop(self) -> None:
        if self._engine is not None:
            self._engine.stopping = True
        super().stop()

    def save_checkpoint(self) -> None:
        """Nothing to do: a resumed run replays the results in the store."""


@contextlib.contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Any:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def stop_orphan(experiment_id: str, patience: float = 20.0) -> bool:
    """Stop the node manager that a killed process left behind, with its trials.

    Parameters
    ----------
    experiment_id
        NNI's id; only a node process that names it on its command line is touched.
    patience
        Seconds to wait for an orderly end before it is killed.

    Returns
    -------
    Whether there was one.
    """
    import psutil

    found = False
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if experiment_id not in command or not any(
            Path(c).name == "main.js" and "nni_node" in c for c in command
        ):
            continue
        found = True
        with contextlib.suppress(psutil.NoSuchProcess):
            children = process.children(recursive=True)
            process.terminate()  # the manager stops its trials, then itself
            _, alive = psutil.wait_procs([process, *children], timeout=patience)
            for left in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            psutil.wait_procs(alive, timeout=5)
    return found
