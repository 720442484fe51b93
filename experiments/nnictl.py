"""The other door: an experiment file started by ``nnictl create``.

``nni-robust nni-config EXPERIMENT --out RUN`` makes a run folder with the resolved experiment and
an NNI configuration, ``RUN/nnictl.yml``. Its tuner is :class:`ExperimentTuner`, which runs the same
search as ``nni-robust run`` inside NNI's tuner process; trials, web UI, ``nnictl experiment
status/view/export/stop`` and ``nnictl resume`` are then NNI's own. Whoever has registered the tuner
with ``nnictl algo register --meta RUN/algo.yml`` can name it `NniRobust` (``--registered``).

Imports stay light: NNI gives a tuner's process ten seconds from start to connection.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni.tuner import Tuner

from nni_robust.nni_adapter import TRIAL_SCRIPT
from nni_robust.nni_adapter.job import Deferred

if TYPE_CHECKING:
    from .schema import Experiment

__all__ = ["ExperimentTuner", "write_nni_config"]

_log = logging.getLogger(__name__)

_TUNER = "nni_robust.experiments.nnictl.ExperimentTuner"
_REGISTERED = "NniRobust"


def write_nni_config(
    experiment: str,
    *,
    out: str | None = None,
    overrides: Sequence[str] = (),
    registered: bool = False,
) -> Path:
    """Make a run folder that ``nnictl create`` can start.

    Everything is a trial there, also where the file says ``engine: sequential`` or looks results up
    in a table.

    Parameters
    ----------
    experiment
        Name of a shipped experiment or path of a YAML file.
    out
        Run folder; None is ``runs/<name>``, numbered where that is taken.
    overrides
        ``section.key=value`` changes of the file.
    registered
        Name the tuner as ``nnictl algo register`` knows it, instead of by its class.

    Returns
    -------
    Path of the NNI configuration, ``nnictl.yml`` in the run folder.

    Raises
    ------
    UserError
        On anything that is wrong with the experiment.
    """
    from nni_robust.errors import UserError
    from nni_robust.redaction import find_secrets
    from nni_robust.store import write_text, write_yaml

    from ._final import count_networks
    from ._preflight import build_strategy, check_writable, preflight
    from ._search import count_trials
    from ._state import begin
    from ._trials import (
        manager_ip,
        on_machines,
        platform,
        service_mapping,
        trial_code,
        trial_command,
    )
    from .runner import open_run, store_folder

    settings, run = open_run(experiment, out, False, None, overrides)
    settings = _as_trials(settings)
    data = preflight(settings)
    check_writable(run)
    secrets = find_secrets(settings.nni.training_service, "nni.training_service")
    if secrets:
        raise UserError(
            f"{secrets[0][0]} is not allowed with nnictl, whose configuration would show it; use a "
            "key file without a passphrase, or 'nni-robust run'"
        )
    code = trial_code(settings, run)
    write_yaml(run / "config.yaml", settings.as_mapping())
    begin(run, settings)
    strategy = build_strategy(settings)
    command = trial_command(settings, store_folder(run, None))
    if on_machines(settings):
        write_text(code / TRIAL_SCRIPT, f"exec env {command}\n")
        command = f"bash {TRIAL_SCRIPT}"
    nni = settings.nni
    config: dict[str, Any] = {
        "experimentName": settings.name,
        "experimentWorkingDirectory": str(run / "nni"),
        # The tuner knows the space; NNI wants one here, shows it and filters trials by it.
        "searchSpace": _search_space(settings, data.num_classes),
        "trialCommand": command,
        "trialCodeDirectory": str(code),
        "trialConcurrency": nni.concurrency,
        # One more than there are: with its last trial the manager would ask for no other, and one
        # that died could not be started again. The tuner says when the end has come.
        "maxTrialNumber": count_trials(settings, strategy) + count_networks(settings) + 1,
        "trialGpuNumber": nni.trial_gpus,
        "tuner": {
            # NNI wants a directory beside a class; this one is installed.
            **(
                {"name": _REGISTERED}
                if registered
                else {"className": _TUNER, "codeDirectory": str(code)}
            ),
            "classArgs": {"run": str(run)},
        },
        "trainingService": service_mapping(settings, command, code),
    }
    if platform(settings) != "local":
        config["nniManagerIp"] = manager_ip(settings)
    write_yaml(run / "nnictl.yml", config)
    write_yaml(
        run / "algo.yml",
        {
            "algoType": "tuner",
            "builtinName": _REGISTERED,
            "className": _TUNER,
            "acceptClassArgs": True,
        },
    )
    return run / "nnictl.yml"


def _as_trials(settings: Experiment) -> Experiment:
    """NNI's training service, and a trial for every look-up too."""
    from nni_robust import registry

    from .schema import Part

    evaluator = settings.evaluator
    taken = registry.constructor_arguments(registry.evaluators.get(evaluator.name))
    if taken is not None and "as_trials" in taken:
        evaluator = Part(evaluator.name, {**evaluator.arguments, "as_trials": True})
    return dataclasses.replace(
        settings, evaluator=evaluator, nni=dataclasses.replace(settings.nni, engine="ts")
    )


def _search_space(settings: Experiment, num_classes: int) -> dict[str, Any]:
    """The choices, named as the trials' parameters are."""
    import torch

    from nni_robust.architecture.space import open_space
    from nni_robust.nni_adapter.spaces import shown_space

    with torch.device("meta"):
        space = open_space(settings.space.name, settings.space.arguments, num_classes)
    return shown_space(space) or {"space": {"_type": "choice", "_value": [settings.space.name]}}


class ExperimentTuner(Tuner):
    """NNI's tuner process runs the whole search of a run folder: strategy, final networks, report.

    Parameters
    ----------
    run
        A run folder made by :func:`write_nni_config`.
    """

    def __init__(self, run: str) -> None:
        self.run = Path(run)
        self.engine: Any = None
        self._waiting: list[tuple[list[int], Callable[..., None]]] = []
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def update_search_space(self, search_space: Any) -> None:
        """NNI's first command: start the search in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._search, daemon=True)
            self._thread.start()

    def _search(self) -> None:
        from nni_robust.data import load_task
        from nni_robust.errors import UserError
        from nni_robust.nni_adapter.tuner_engine import manager_url

        from ._search import search
        from .runner import same_settings, store_folder
        from .schema import load_experiment

        channel = os.environ["NNI_TUNER_COMMAND_CHANNEL"]
        try:
            settings = load_experiment(str(self.run / "config.yaml"))
            same_settings(self.run, settings)
            search(
                settings,
                self.run,
                load_task(settings.task),
                store_folder(self.run, None),
                self._open,
                url=manager_url(channel),
                html=True,
                report=_log.warning,
            )
        except UserError as e:
            self._give_up("%s", e)
        except Exception as e:
            _log.exception("the search failed")
            self._give_up("the search failed: %s", e)
        self.engine.close()

    def _give_up(self, message: str, reason: object) -> None:
        """End the tuner's process: NNI then shows the experiment's status as ERROR."""
        _log.error(message, reason)
        logging.shutdown()
        os._exit(1)

    def _open(
        self,
        space: Any,
        evaluator: Any,
        strategy: Any,
        trials: int,
        total: int,
        on_engine: Callable[[Any], None],
    ) -> _InsideNni:
        from nni_robust.nni_adapter.job import JOBS
        from nni_robust.nni_adapter.tuner_engine import TunerEngine, manager_url
        from nni_robust.store import Store

        from .runner import store_folder

        jobs = Store(store_folder(self.run, None)).folder(JOBS)
        engine = TunerEngine(jobs, manager_url(os.environ["NNI_TUNER_COMMAND_CHANNEL"]))
        engine.budget = trials
        return _InsideNni(self, space, evaluator, strategy, engine, on_engine)

    def take(self, engine: Any) -> None:
        """The engine runs: give it the requests that came before."""
        with self._lock:
            self.engine = engine
            for ids, send in self._waiting:
                for parameter_id, parameters in zip(
                    ids, list(engine.request(ids, send)), strict=False
                ):
                    send(parameter_id, parameters)
            self._waiting.clear()

    def generate_multiple_parameters(
        self, parameter_id_list: list[int], **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Parameters for as many trials as NNI asks for; some are sent later."""
        with self._lock:
            if self.engine is None:
                self._waiting.append((parameter_id_list, kwargs["st_callback"]))
                return Deferred(len(parameter_id_list))
            found: list[dict[str, Any]] = self.engine.request(
                parameter_id_list, kwargs["st_callback"]
            )
            return found

    def receive_trial_result(
        self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any
    ) -> None:
        """A final metric."""
        self.engine.metric(parameter_id, value)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """A trial has ended."""
        self.engine.ended(parameter_id, success)

    def import_data(self, data: Any) -> None:
        """Results of an earlier life of the experiment: they are in the run's store already."""


class _InsideNni:
    """What :func:`._search.search` runs on in NNI's tuner process."""

    def __init__(
        self,
        tuner: ExperimentTuner,
        space: Any,
        evaluator: Any,
        strategy: Any,
        engine: Any,
        on_engine: Callable[[Any], None],
    ) -> None:
        from nni_robust.nni_adapter.spaces import ReadableModelSpace

        self.tuner, self.strategy, self.engine = tuner, strategy, engine
        self.on_engine = on_engine
        self.executable_space = ReadableModelSpace.from_model(space, evaluator)

    @property
    def id(self) -> str:
        return str(self.engine.experiment_id)

    def start(self) -> None:
        self.on_engine(self.engine)
        self.tuner.take(self.engine)
        self.strategy(self.executable_space, self.engine)

    def stop(self) -> None:
        self.engine.shutdown()
