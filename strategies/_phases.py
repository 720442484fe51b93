"""What the strategies of this library share: phases of their own, and candidates with scores."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nni.nas.execution.event import ModelEventType
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import ModelStatus
from nni.nas.strategy import Strategy

from nni_robust.errors import UserError
from nni_robust.nni_adapter.spaces import space_class
from nni_robust.nni_adapter.waiting import wait_for
from nni_robust.sampling import Sample, draw
from nni_robust.store import Store
from nni_robust.supernet import build_supernet, inherit
from nni_robust.training import Recipe
from nni_robust.trial import StoredEvaluator

__all__ = ["PhasedStrategy", "blank_space", "check_supernet", "supernet_recipe"]

_log = logging.getLogger(__name__)


def blank_space(model_space: Any, **changes: Any) -> Any:
    """A new space of the same class and arguments, without weights where that is possible.

    Parameters
    ----------
    model_space
        NNI's executable space.
    changes
        Named arguments that differ.
    """

    def build() -> Any:
        arguments = {**model_space.model.trace_kwargs, **changes}
        return space_class(model_space)(*model_space.model.trace_args, **arguments)

    try:
        with torch.device("meta"):
            return build()
    except RuntimeError:  # it asks tensors for their values, as AutoFormer of NNI's hub does
        return build()


def supernet_recipe(own: Recipe | None, evaluators: Recipe | None) -> Recipe | None:
    """How a supernet is trained: by its own recipe, else as the evaluator trains candidates.

    A supernet ends with its last weights, for its accuracy is that of one path.

    Raises
    ------
    UserError
        If its own recipe keeps the best.
    """
    if own is None:
        if evaluators is None:
            return None
        return dataclasses.replace(evaluators, keep="last", patience=None)
    if own.keep != "last":
        raise UserError(
            f"strategy.supernet.keep: '{own.keep}' is not allowed; 'last' is, for a supernet's "
            "accuracy is that of one path"
        )
    return own


def check_supernet(model_space: Any) -> None:
    """Refuse, before any work, a space that has nothing to choose or cannot share weights.

    Raises
    ------
    UserError
        With the reason.
    """
    space = blank_space(model_space)
    mutables = space.simplify()
    if not mutables:
        raise UserError(f"space {type(space).__name__} has no choices; there is nothing to search")
    with torch.device("meta"):
        build_supernet(space)
    if type(space).freeze is not ModelSpace.freeze:  # one of its own may make new weights
        with torch.random.fork_rng(devices=[]):
            supernet = build_supernet(model_space.model.trace_copy().get(traceable=False))
            rng = np.random.RandomState(0)
            for _ in range(4):  # the largest widths may fit where others do not
                inherit(supernet, draw(mutables, rng))


class PhasedStrategy(Strategy):
    """A strategy whose work is NNI trials: phases, such as a supernet's training, and candidates.

    Subclasses set :attr:`name` and :attr:`needs`, and implement ``_run`` with :meth:`prepare` and
    :meth:`evaluate`. Every submitted model is kept, because NNI's engine has weak references only.

    Attributes
    ----------
    name
        As in experiment files, for messages.
    needs
        Attributes that the evaluator must have; ``"store"`` must not be None either.
    """

    name: str = "strategy"
    needs: tuple[str, ...] = ("task", "store", "variant")

    def __init__(self) -> None:
        super().__init__()
        self._submitted: list[tuple[Any, dict[str, Any] | None]] = []

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        evaluator = model_space.evaluator
        for needed in self.needs:
            if not hasattr(evaluator, needed):
                raise UserError(
                    f"strategy {self.name} needs an evaluator with '{needed}', such as "
                    f"adversarial-training; {type(evaluator).__name__} has none"
                )
        if "store" in self.needs and evaluator.store is None:
            raise UserError(f"strategy {self.name} needs an evaluator with a store folder")
        engine.register_model_event_callback(ModelEventType.FinalMetric, self._on_metric)
        return model_space

    def _cleanup(self) -> None:
        self.engine.unregister_model_event_callback(ModelEventType.FinalMetric, self._on_metric)

    def _on_metric(self, event: Any) -> None:
        metric = event.metric if isinstance(event.metric, dict) else {"default": event.metric}
        for position, (model, _) in enumerate(self._submitted):
            if model is event.model:
                self._submitted[position] = (model, dict(metric))
                return

    def list_models(self, sort: bool = True, limit: int | None = None) -> Iterator[Any]:
        """As NNI's, without phases: a supernet or a teacher has a score, but is no result."""
        phase = getattr(self.model_space.evaluator, "phase", None)
        models = super().list_models(sort)
        found = (m for m in models if getattr(m.evaluator, "phase", None) == phase)
        return itertools.islice(found, limit)

    def submit(self, sample: Sample, evaluator: Any) -> int:
        """Send a model off; returns its position for :meth:`outcome`."""
        model = self.model_space.freeze(sample)
        model.evaluator = evaluator
        self._submitted.append((model, None))
        self.engine.submit_models(model)
        return len(self._submitted) - 1

    def wait(self, positions: Sequence[int]) -> None:
        """Return when these models have ended, well or not."""
        wait_for(self.engine, [self._submitted[position][0] for position in positions])

    def outcome(self, position: int) -> dict[str, Any] | None:
        """Final metrics of a submitted model that has ended; None where it failed."""
        model, metric = self._submitted[position]
        return metric if model.status == ModelStatus.Trained else None

    def evaluate(
        self, samples: Sequence[Sample], evaluators: Any = None
    ) -> list[dict[str, Any] | None]:
        """Evaluate candidates side by side, as far as the engine's budget goes; wait for all.

        Parameters
        ----------
        samples
            The architectures.
        evaluators
            One evaluator for all, or one for each; None is the experiment's.

        Returns
        -------
        Final metrics of each; None where a trial failed or there was no budget left for it.
        """
        chosen = self.model_space.evaluator if evaluators is None else evaluators
        each = list(chosen) if isinstance(chosen, (list, tuple)) else [chosen] * len(samples)
        positions: list[int] = []
        for sample, evaluator in zip(samples, each, strict=True):
            # All at once: NNI's manager starts the next one as soon as there is room, while a
            # strategy that waits for room costs two more seconds each time.
            if not self.engine.budget_available():
                _log.warning(
                    "no budget for %d of %d candidates",
                    len(samples) - len(positions),
                    len(samples),
                )
                break
            positions.append(self.submit(sample, evaluator))
        self.wait(positions)
        found = [self.outcome(position) for position in positions]
        return found + [None] * (len(samples) - len(found))

    def prepare(self, trial: StoredEvaluator, sample: Sample, what: str) -> dict[str, Any]:
        """Run a phase that the rest waits for.

        Parameters
        ----------
        trial
            The evaluator of the phase, with a store.
        sample
            Any sample of the space: a model needs one to be sent.
        what
            What the phase is, for the message when it fails.

        Returns
        -------
        The trial's record in the store.

        Raises
        ------
        UserError
            With the reason, if the trial failed.
        """
        position = self.submit(sample, trial)
        self.wait([position])
        model, _ = self._submitted[position]
        store, key = Store(str(trial.store)), trial.key(model)
        record = store.result(key)
        if model.status != ModelStatus.Trained or record is None:
            why = store.failure(key) or "see the trial's log in NNI's web UI"
            raise UserError(f"{what} failed: {why}")
        return record
