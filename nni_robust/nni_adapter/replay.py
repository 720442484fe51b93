"""Engines that answer finished models from the store, and keep what they were given.

A resumed search is the same search run again with its past replayed, so a strategy needs no saved
state to go on, and NNI's own checkpoint (a pickle that torch >= 2.6 refuses to load) is not used.
"""

from __future__ import annotations

from typing import Any

from nni.nas.execution.event import FinalMetricEvent, TrainingEndEvent
from nni.nas.space import ModelStatus

__all__ = ["ReplayMixin"]


class ReplayMixin:
    """Mixed into an engine: finished models are answered from the store; counts against one budget.

    It also keeps every submitted model: NNI's engine has weak references only, and calls no
    callback for a model that the strategy let go of (its own `Random` does).
    """

    def __init__(self, *args: Any) -> None:
        self.budget: int | None = None
        self.models: list[Any] = []
        self.callback_error: BaseException | None = None
        super().__init__(*args)

    @property
    def submitted(self) -> int:
        """Models submitted so far, replayed ones included."""
        return len(self.models)

    def list_models(self, status: Any = None) -> list[Any]:
        """The submitted models, the instances themselves."""
        return [m for m in self.models if status is None or m.status == status]

    def submit_models(self, *models: Any) -> None:
        for model in models:
            self.raise_callback_error()
            model.ordinal = self.submitted  # the n-th model of the run, counted from 0
            self.models.append(model)
            finished = getattr(model.evaluator, "finished", None)
            metrics = finished(model) if finished is not None else None
            if metrics is None:
                super().submit_models(model)  # type: ignore[misc]
            else:
                model.status = ModelStatus.Training
                dispatch: Any = self.dispatch_model_event  # type: ignore[attr-defined]
                dispatch(FinalMetricEvent(model, metrics))
                dispatch(TrainingEndEvent(model, ModelStatus.Trained))

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
