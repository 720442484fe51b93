"""The suite for strategies: ours and NNI's pass it, broken ones fail the test meant for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nni.nas.execution.event import ModelEventType
from nni.nas.space import ModelStatus
from nni.nas.strategy import Strategy

from nni_robust import registry
from nni_robust.sampling import draw
from nni_robust.store import content_key
from nni_robust.testing import HashEvaluator, StrategyConformance

#: Of 3 architectures that are measured; attacks of one step on 8 pictures.
SPECTRUM: dict[str, Any] = {
    "epochs": 1,
    "warmup": {"archs": 2},
    "objective": {"strengths": [0.05, 0.1], "weights": [1, 2]},
    "measure": {"steps": 1, "pictures": 8, "recalibrate_batches": 1},
    "finalists": 3,
}
TUTORS: dict[str, Any] = {
    "weights": {"epochs": 1, "batch_size": 16, "lr": 0.05},
    "maps": {"size": 4},
}
TEACHER: dict[str, Any] = {
    "architecture": "wrn-16-1",
    "train": {"epochs": 1, "batch_size": 16, "loss": "clean", "validation_attack": None},
}
TASK: dict[str, Any] = {"threat": {"eps": 0.1}, "train_limit": 32, "validation_limit": 16}


class Registered(StrategyConformance):
    name: str
    settings: dict[str, Any] = {}  # noqa: RUF012

    def make_strategy(self, seed: int) -> Any:
        return registry.strategies.get(self.name)(seed=seed, **self.settings)


class TestNNIs(Registered):
    """Their state holds arrays, and is not used: experiments replay."""

    plain_state = resumes_by_state = False

    @pytest.fixture(
        autouse=True,
        params=[
            pytest.param("tpe", marks=pytest.mark.slow),  # it sleeps a second after each trial
            "random",
            "grid-search",
            "regularized-evolution",
        ],
    )
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param
        if self.name == "regularized-evolution":
            self.settings = {"population_size": 3, "sample_size": 2, "mutation_prob": 0.5}


class TestRobustOneShot(Registered):
    name, settings = "robust-one-shot", {"candidates": 5}


class TestRLCompressor(Registered):
    name, settings = "rl-compressor", {"updates": 3, "rollouts": 2}


class TestWideSpectrum(Registered):
    name, settings = "wide-spectrum", {"candidates": 3, **SPECTRUM}
    budget, interrupted = 4, 3
    resumes_by_state = False  # its state spares it the search; candidates come from the store


class TestCrossLayerDistillation(Registered):
    name, settings = "cross-layer-distillation", {"rivals": ["random"], "search": TUTORS}
    budget, interrupted = 4, 3
    resumes_by_state = False  # it has none: all comes from the store

    def make_evaluator(self, store: str, *, failures: float = 0.0) -> Any:
        return HashEvaluator(store=store, failures=failures, task={**TASK, "teacher": TEACHER})


def test_every_registered_strategy_is_tested() -> None:
    ours = {cls.name for cls in Registered.__subclasses__() if cls is not TestNNIs}
    theirs = {"tpe", "random", "grid-search", "regularized-evolution"}
    assert set(registry.strategies.names()) == ours | theirs


# --- broken on purpose ---------------------------------------------------------------------------


class Plain(Strategy):
    """Random search as a beginner would write it, but right."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.scores: dict[str, float] = {}
        self.models: list[Any] = []

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        engine.register_model_event_callback(ModelEventType.FinalMetric, self._on_metric)
        return model_space

    def _cleanup(self) -> None:
        self.engine.unregister_model_event_callback(ModelEventType.FinalMetric, self._on_metric)

    def _on_metric(self, event: Any) -> None:
        self.scores[content_key(event.model.sample)] = event.metric["default"]

    def _run(self) -> None:
        mutables, seen = self.model_space.simplify(), set(self.scores)
        rng = np.random.RandomState(self.seed)
        while self.going():
            sample = draw(mutables, rng)
            if content_key(sample) in seen:
                continue
            seen.add(content_key(sample))
            self.submit(self.model_space.freeze(sample))

    def going(self) -> bool:
        return bool(self.wait_for_resource())

    def submit(self, model: Any) -> None:
        self.models.append(model)
        self.engine.submit_models(model)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = dict(state_dict["scores"])


class IgnoresTheSeed(Plain):
    def __init__(self, seed: int) -> None:
        super().__init__(0)


class Unseeded(Plain):
    def _run(self) -> None:
        self.seed = int(np.random.SeedSequence().entropy) % 2**31  # type: ignore[arg-type]
        super()._run()


class StopsAtAFailure(Plain):
    def going(self) -> bool:
        failed = bool(self.models) and self.models[-1].status == ModelStatus.Failed
        return not failed and super().going()


class StaysRegistered(Plain):
    def _cleanup(self) -> None:
        pass


class StateOfTuples(Plain):
    def state_dict(self) -> dict[str, Any]:
        return {"scores": tuple(self.scores.items())}


class ForgetsItsState(Plain):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class LeavesTheSpace(Plain):
    def submit(self, model: Any) -> None:
        model.sample["width"] = 3
        super().submit(model)


class IgnoresTheBudget(Plain):
    def going(self) -> bool:
        return len(self.models) < 6


class Suite(StrategyConformance):
    kind: Any = Plain

    def make_strategy(self, seed: int) -> Any:
        return self.kind(seed)


class TestPlain(Suite):
    pass


class SuiteOfIgnoresTheSeed(Suite):
    kind = IgnoresTheSeed


class SuiteOfUnseeded(Suite):
    kind = Unseeded


class SuiteOfStopsAtAFailure(Suite):
    kind = StopsAtAFailure


class SuiteOfStaysRegistered(Suite):
    kind = StaysRegistered


class SuiteOfStateOfTuples(Suite):
    kind = StateOfTuples


class SuiteOfForgetsItsState(Suite):
    kind = ForgetsItsState


class SuiteOfLeavesTheSpace(Suite):
    kind = LeavesTheSpace


class SuiteOfIgnoresTheBudget(Suite):
    kind = IgnoresTheBudget


@pytest.mark.parametrize(
    ("suite", "meant"),
    [
        (SuiteOfIgnoresTheSeed, "test_another_seed_gives_other_samples"),
        (SuiteOfStopsAtAFailure, "test_goes_on_after_failed_trials"),
        (SuiteOfStaysRegistered, "test_leaves_the_engine"),
        (SuiteOfStateOfTuples, "test_state_is_plain"),
        (SuiteOfForgetsItsState, "test_resumes_by_state"),
    ],
)
def test_broken_strategies_fail_the_test_that_is_meant(
    suite: type, meant: str, failing: Callable[[type], set[str]]
) -> None:
    assert failing(suite) == {meant}


@pytest.mark.parametrize(
    ("suite", "meant"),
    [
        (SuiteOfUnseeded, "test_a_seed_repeats"),
        (SuiteOfIgnoresTheBudget, "test_keeps_to_the_budget"),
        (SuiteOfLeavesTheSpace, "test_submits_samples_of_the_space"),
    ],
)
def test_strategies_broken_in_several_ways_fail_that_test_too(
    suite: type, meant: str, failing: Callable[[type], set[str]]
) -> None:
    assert meant in failing(suite)
