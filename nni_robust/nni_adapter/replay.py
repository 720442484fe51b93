"""Engines that answer finished models from the store, and keep what they were given.

A resumed search is the same search run again with its past replayed, so a strategy needs no saved
state to go on, and NNI's own checkpoint (a pickle that torch >= 2.6 refuses to load) is not used.

A trial whose process dies without a word (``kill -9``, the kernel's out-of-memory killer, a machine
that reboots) is started again, :data:`RETRIES` times; NNI itself would take the architecture for a
failed one. One that failed with an exception, or was interrupted because somebody stopped it in the
web UI, has said why, and is not. NNI's own states do not tell the two apart: a trial that a signal
ended is ``USER_CANCELED``, whoever sent it.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from nni.nas.execution.event import FinalMetricEvent, ModelEvent, TrainingEndEvent
from nni.nas.space import ModelStatus

from nni_robust.errors import UserError, disk_full
from nni_robust.store import Store, check_space, full_sentence

__all__ = ["RETRIES", "ReplayMixin"]

_log = logging.getLogger(__name__)

#: Times that a trial is started again after its process died without a reason of its own.
RETRIES = 2

_DIED = (
    "the trial's process died {n} times without giving a reason: killed from outside, or the "
    "machine ran out of memory; its logs are in NNI's web UI"
)


class ReplayMixin:
    """Mixed into an engine: finished models are answered from the store; counts against one budget.

    It also keeps every submitted model: NNI's engine has weak references only, and calls no
    callback for a model that the strategy let go of (its own `Random` does).

    Attributes
    ----------
    retries
        Times that a trial is started again whose process died without a reason. 0 for an engine
        that runs models in its own process: that process is then no more.
    stopping
        The experiment is being stopped, and its trials with it.
    """

    retries = RETRIES
    stopping = False

    def __init__(self, *args: Any) -> None:
        self.budget: int | None = None
        self.models: list[Any] = []
        self.callback_error: BaseException | None = None
        self._failed_at: dict[int, int] = {}  # by ordinal, when the attempt began
        self._attempts: dict[int, int] = {}
        # The strategy submits in its thread, a retry in that of NNI's listener, and NNI's engine
        # numbers its parameters without a lock.
        self._submitting = threading.RLock()
        super().__init__(*args)

    @property
    def submitted(self) -> int:
        """Models submitted so far, replayed ones included and retries not."""
        return len(self.models)

    def list_models(self, status: Any = None) -> list[Any]:
        """The submitted models, the instances themselves."""
        return [m for m in self.models if status is None or m.status == status]

    def submit_models(self, *models: Any) -> None:
        for model in models:
            self.raise_callback_error()
            model.ordinal = self.submitted  # the n-th model of the run, counted from 0
            self.models.append(model)
            metrics = _stored(model)
            if metrics is None:
                self._start(model)
            else:
                model.status = ModelStatus.Training
                self.dispatch_model_event(FinalMetricEvent(model, metrics))
                self.dispatch_model_event(TrainingEndEvent(model, ModelStatus.Trained))

    def _start(self, model: Any) -> None:
        """Run a model as a trial."""
        store, key = _place(model)
        number = model.ordinal
        self._attempts[number] = self._attempts.get(number, 0) + 1
        self._failed_at[number] = store.failed_at(key) if store is not None else 0
        with self._submitting:
            super().submit_models(model)  # type: ignore[misc]

    def dispatch_model_event(self, event: Any, **kwargs: Any) -> None:
        """NNI's, but each model ends once, and not before its retries are used up."""
        if isinstance(event, ModelEvent):
            model = event.model
            if model.status.completed():
                _log.debug("late or repeated %s of a finished model ignored", type(event).__name__)
                return
            if isinstance(event, FinalMetricEvent):
                if model.metrics.final is not None:
                    return
                # What was measured, as a resumed search sees it; NNI's UI is told more than that.
                measured = _stored(model)
                if measured is not None:
                    event = FinalMetricEvent(model, measured)
            if isinstance(event, TrainingEndEvent):
                settled = self._settle(event)
                if settled is None:
                    return
                event = settled
        super().dispatch_model_event(event, **kwargs)  # type: ignore[misc]

    def _settle(self, event: TrainingEndEvent) -> TrainingEndEvent | None:
        """What a trial's end means; None if it was started again."""
        model = event.model
        if event.status not in (ModelStatus.Trained, ModelStatus.Failed):
            return event
        metrics = _stored(model)
        if metrics is not None:  # whatever became of the process, or of its message
            if model.metrics.final is None:
                self.dispatch_model_event(FinalMetricEvent(model, metrics))
            return TrainingEndEvent(model, ModelStatus.Trained)
        store, key = _place(model)
        if event.status == ModelStatus.Trained or store is None:
            return event
        if self.stopping:
            return None  # it ends because all does; a resumed run does it
        check_space(store.root)
        number = model.ordinal
        if not self.retries or store.failed_at(key) != self._failed_at[number]:
            reason = store.failure(key)
            if reason is not None and disk_full(OSError(reason)):
                raise UserError(full_sentence(store.root))  # the others would fail as well
            return event
        if self._attempts[number] > self.retries:
            store.fail(key, _DIED.format(n=self._attempts[number]))
            return event
        _log.warning("trial %d died without a reason; it is started again", number)
        model.metrics.clear()
        self.allow_another()
        self._start(model)
        return None

    def allow_another(self) -> None:
        """Make room for one more trial than NNI was told of."""

    def budget_available(self) -> bool:
        self.check_alive()
        if self.budget is not None and self.submitted >= self.budget:
            return False
        return bool(super().budget_available())  # type: ignore[misc]

    def check_alive(self) -> None:
        """Raise what stops the search for good, where something did."""
        self.raise_callback_error()

    def raise_callback_error(self) -> None:
        """Raise what a callback raised in another thread."""
        if self.callback_error is not None:
            error, self.callback_error = self.callback_error, None
            raise error


def _stored(model: Any) -> dict[str, Any] | None:
    """The metrics of a model that has been evaluated before."""
    finished = getattr(model.evaluator, "finished", None)
    return None if finished is None else finished(model)


def _place(model: Any) -> tuple[Store | None, str]:
    """The store and the key of a model's result; an evaluator without a store has neither."""
    folder, key = getattr(model.evaluator, "store", None), getattr(model.evaluator, "key", None)
    if folder is None or key is None:
        return None, ""
    return Store(Path(folder)), key(model)
