"""A NAS execution engine inside an NNI tuner, so that ``nnictl`` runs NAS strategies.

NNI's own NAS experiment is a Python program; no nnictl command can start, resume or view one (its
``create`` accepts the config and then nobody runs the strategy). The other way round works: an
ordinary experiment whose tuner runs the strategy, on this engine. What the strategy submits is
handed to the manager when it asks for parameters, or later, when there is something to hand over.

A trial's parameters are its architecture, readable in the web UI and in ``nnictl experiment
export``, and the name of a job file in the run folder that holds the model as NNI serialises it
(:mod:`nni_robust.nni_adapter.job`).
"""

from __future__ import annotations

import logging
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import requests
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import FinalMetricEvent, TrainingEndEvent
from nni.nas.space import ModelStatus

from nni_robust.errors import UserError
from nni_robust.nni_adapter.job import JOB, Deferred, refuse_pickle
from nni_robust.nni_adapter.replay import ReplayMixin
from nni_robust.nni_adapter.spaces import summary
from nni_robust.nni_adapter.waiting import wait_for
from nni_robust.store import content_key, write_text

__all__ = ["TunerEngine", "manager_url"]

_log = logging.getLogger(__name__)

_UNFINISHED = ("WAITING", "RUNNING", "UNKNOWN")

Send = Callable[[int, dict[str, Any]], None]


def manager_url(channel: str) -> str:
    """``http://host:port[/prefix]`` of the manager behind a tuner's command channel."""
    url = urllib.parse.urlsplit(channel)
    return f"http://{url.netloc}{url.path.removesuffix('/tuner')}"


class _Submits(ExecutionEngine):
    """What the mixin's ``super()`` finds; :class:`TunerEngine` says what happens."""

    stopped: bool
    _submit: Callable[[Any], None]

    def submit_models(self, *models: Any) -> None:
        for model in models:
            self._submit(model)

    def budget_available(self) -> bool:
        return not self.stopped


class TunerEngine(ReplayMixin, _Submits):
    """Runs models as trials of the experiment that this process is the tuner of.

    Parameters
    ----------
    jobs
        Folder of the job files; trials read it, so on other machines it must be the same path.
    manager
        URL of NNI's manager.
    """

    def __init__(self, jobs: Path, manager: str) -> None:
        super().__init__()
        self.jobs, self.manager = jobs, manager
        self.stopped = False
        self._lock = threading.RLock()
        self._asked: list[int] = []  # parameter ids that the manager waits for
        self._ready: list[tuple[Any, str]] = []  # models that wait for the manager
        self._sent: dict[int, Any] = {}
        self._send: Send | None = None
        # After a resume the manager runs again what ran when it was stopped, and tells the tuner
        # nothing of those trials' ends.
        self._earlier = self._running_jobs()
        self._adopted: dict[str, Any] = {}

    def _running_jobs(self) -> dict[str, str]:
        """Trial ids of unfinished trials, by the name of their job."""
        return {
            job: trial["trialJobId"]
            for trial in self._ask("trial-jobs")
            if trial["status"] in _UNFINISHED
            for text in trial.get("hyperParameters", [])
            if (job := nni.load(text)["parameters"].get(JOB)) is not None
        }

    def _ask(self, what: str) -> Any:
        reply = requests.get(f"{self.manager}/api/v1/nni/{what}", timeout=20)
        reply.raise_for_status()
        return reply.json()

    @property
    def experiment_id(self) -> str:
        """NNI's name of the experiment."""
        return str(self._ask("experiment")["id"])

    # What the strategy calls, in its own thread.

    def _submit(self, model: Any) -> None:
        """What :meth:`ReplayMixin.submit_models` calls for a model without a stored result."""
        model.status = ModelStatus.Training
        job = self._job(model)
        with self._lock:
            if job in self._earlier:
                self._adopted[self._earlier.pop(job)] = model  # its trial runs already
            elif self._asked:
                assert self._send is not None
                parameter_id = self._asked.pop(0)
                self._send(parameter_id, self._parameters(parameter_id, model, job))
            else:
                self._ready.append((model, job))

    def _collect_adopted(self) -> None:
        """End the adopted models whose trials have ended."""
        if not self._adopted:
            return
        for trial in self._ask("trial-jobs"):
            model = self._adopted.get(trial["trialJobId"])
            if model is None or trial["status"] in _UNFINISHED:
                continue
            del self._adopted[trial["trialJobId"]]
            metrics = [
                nni.load(entry["data"])
                for entry in trial.get("finalMetricData") or []
                if entry.get("data") is not None
            ]
            if metrics:
                value = nni.load(metrics[-1]) if isinstance(metrics[-1], str) else metrics[-1]
                self._dispatch(FinalMetricEvent(model, value))
            succeeded = trial["status"] == "SUCCEEDED" and bool(metrics)
            status = ModelStatus.Trained if succeeded else ModelStatus.Failed
            self._dispatch(TrainingEndEvent(model, status))

    def _job(self, model: Any) -> str:
        """Write the model's job file; its name, the same for an equal model of a resumed search."""
        text = nni.dump(model)
        refuse_pickle(text, "the model of a trial")
        key = getattr(model.evaluator, "key", None)
        job = key(model) if key is not None else content_key(text)
        write_text(self.jobs / f"{job}.json", text)
        return str(job)

    def _parameters(self, parameter_id: int, model: Any, job: str) -> dict[str, Any]:
        self._sent[parameter_id] = model
        return {**summary(model), JOB: job}

    def idle_worker_available(self) -> bool:
        return bool(self._asked)

    def check_alive(self) -> None:
        self._collect_adopted()
        super().check_alive()

    def wait_models(self, *models: Any) -> None:
        wait_for(self, models or self.models)

    def shutdown(self) -> None:
        self.stopped = self.stopping = True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        """Tell the manager that no more trials come, so that the experiment can be done."""
        self.stopped = True
        self._allow(max(1, len(self._ask("trial-jobs"))))

    def allow_another(self) -> None:
        self._allow(self._ask("experiment")["params"]["maxTrialNumber"] + 1)

    def _allow(self, trials: int) -> None:
        """Set the most trials of the experiment."""
        profile = self._ask("experiment")
        profile["params"]["maxTrialNumber"] = trials
        requests.put(
            f"{self.manager}/api/v1/nni/experiment?update_type=MAX_TRIAL_NUM",
            json=profile,
            timeout=20,
        ).raise_for_status()

    # What NNI's dispatcher calls, in its thread.

    def request(self, parameter_ids: list[int], send: Send) -> list[dict[str, Any]]:
        """Parameters for these ids as far as there are any; the others are sent later."""
        found = Deferred(len(parameter_ids))
        with self._lock:
            self._send = send
            for parameter_id in parameter_ids:
                # The dispatcher numbers what it gets from the front.
                if self._ready and not self._asked:
                    found.append(self._parameters(parameter_id, *self._ready.pop(0)))
                else:
                    self._asked.append(parameter_id)
        return found

    def metric(self, parameter_id: int, value: Any) -> None:
        """A trial's final report."""
        if parameter_id in self._sent:
            self._dispatch(FinalMetricEvent(self._sent[parameter_id], value))

    def ended(self, parameter_id: int, success: bool) -> None:
        """A trial's end."""
        if parameter_id in self._sent:
            status = ModelStatus.Trained if success else ModelStatus.Failed
            self._dispatch(TrainingEndEvent(self._sent[parameter_id], status))

    def _dispatch(self, event: Any) -> None:
        try:
            self.dispatch_model_event(event)
        except Exception as e:  # in the dispatcher's thread: raised where the strategy calls next
            if not isinstance(e, UserError):
                _log.exception("a callback failed")
            self.callback_error = e
