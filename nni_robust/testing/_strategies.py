"""What every exploration strategy promises, as a test class to inherit.

The suite brings a tiny space and an evaluator that scores by a hash (:mod:`._parts`); a strategy
with phases of its own, such as a supernet's training, really runs them, on a few digits.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import ModelStatus, SimplifiedModelSpace
from nni.nas.strategy import Strategy

from nni_robust.errors import UserError
from nni_robust.nni_adapter.mocking import trial_parameters_kept
from nni_robust.store import content_key
from nni_robust.testing._parts import HashEvaluator, ReplayEngine, TinySpace

__all__ = ["StrategyConformance"]


class StrategyConformance:
    """Tests of one strategy; implement :meth:`make_strategy`.

    Attributes
    ----------
    budget
        Models that it may submit, its own phases included; the strategy must be set up to use all.
    interrupted
        Models after which the tests interrupt a search; with at least one candidate among them.
    seeded
        It claims that another seed gives other samples.
    resumes_by_replay
        It claims that, run again where finished models are answered from the store, it submits the
        same samples.
    resumes_by_state
        It claims that after :meth:`load_state_dict` it goes on, without asking again for what has
        a score.
    plain_state
        It claims that its state is JSON.
    """

    budget: int = 6
    interrupted: int = 4
    seeded: bool = True
    resumes_by_replay: bool = True
    resumes_by_state: bool = True
    plain_state: bool = True

    def make_strategy(self, seed: int) -> Any:
        """A fresh strategy; equal for equal seeds."""
        raise NotImplementedError("override make_strategy(self, seed)")

    def make_space(self) -> Any:
        """The space that is searched."""
        return TinySpace()

    def make_evaluator(self, store: str, *, failures: float = 0.0) -> Any:
        """The evaluator of the experiment.

        Parameters
        ----------
        store
            Folder of the run's store.
        failures
            Share of the samples whose trials fail.
        """
        return HashEvaluator(store=store, failures=failures)

    def run(
        self,
        store: Path,
        *,
        seed: int = 0,
        budget: int | None = None,
        failures: float = 0.0,
        state: dict[str, Any] | None = None,
    ) -> tuple[Any, list[Any]]:
        """Search; returns the strategy and the models that it submitted, in order."""
        engine = ReplayEngine(self.budget if budget is None else budget)
        strategy = self.make_strategy(seed)
        self.search(strategy, engine, store, failures, state)
        return strategy, engine.models

    def search(
        self,
        strategy: Any,
        engine: Any,
        store: Path,
        failures: float = 0.0,
        state: dict[str, Any] | None = None,
    ) -> None:
        """What an experiment does: initialize, load a state where there is one, run."""
        evaluator = self.make_evaluator(str(store), failures=failures)
        space = SimplifiedModelSpace.from_model(self.make_space(), evaluator)
        with torch.random.fork_rng(), trial_parameters_kept():
            torch.seed()  # no luck: what is repeated is the strategy's doing
            strategy.initialize(space, engine)
            if state is not None:
                strategy.load_state_dict(state)
            strategy.run()

    def test_is_an_nni_strategy(self) -> None:
        assert isinstance(self.make_strategy(0), Strategy)

    def test_runs_on_nnis_sequential_engine(self, tmp_path: Path) -> None:
        engine = SequentialExecutionEngine(max_model_count=self.budget)
        strategy = self.make_strategy(0)
        self.search(strategy, engine, tmp_path)
        models = list(engine.list_models())
        assert {model.status for model in models} == {ModelStatus.Trained}
        best = next(iter(strategy.list_models(limit=1)))
        assert best.metric == max(model.metric for model in models)

    def test_submits_samples_of_the_space(self, tmp_path: Path) -> None:
        space = self.make_space()
        _, models = self.run(tmp_path)
        assert [m.sample for m in models if not space.contains(m.sample)] == []

    def test_keeps_to_the_budget(self, tmp_path: Path) -> None:
        for budget in (self.budget, self.interrupted):
            _, models = self.run(tmp_path, budget=budget)
            assert len(models) == budget, f"{len(models)} of a budget of {budget} were submitted"

    def test_a_seed_repeats(self, tmp_path: Path) -> None:
        first, again = (_asked(self.run(tmp_path / n)[1]) for n in ("first", "again"))
        assert again == first

    def test_another_seed_gives_other_samples(self, tmp_path: Path) -> None:
        first, other = (
            _asked(_candidates(self.run(tmp_path / str(seed), seed=seed)[1])) for seed in (0, 1)
        )
        if not self.seeded:
            assert other == first, "another seed gives other samples: claim seeded"
            return
        assert other != first

    def test_goes_on_after_failed_trials(self, tmp_path: Path) -> None:
        for seed in range(6):  # who fails is chance: in one search all may, or nobody
            engine = ReplayEngine(self.budget)
            try:
                self.search(self.make_strategy(seed), engine, tmp_path / str(seed), failures=0.5)
            except UserError:
                if any(m.status == ModelStatus.Trained for m in _candidates(engine.models)):
                    raise
                continue  # none was left
            assert len(engine.models) == self.budget, "it ended early"
            status = {m.status for m in _candidates(engine.models)}
            if status == {ModelStatus.Trained, ModelStatus.Failed}:
                return
        pytest.fail("in no search some candidates failed and others did not", pytrace=False)

    def test_ends_where_every_trial_fails(self, tmp_path: Path) -> None:
        """Well, or with a sentence that says so; other exceptions are a crash."""
        engine = ReplayEngine(self.budget)
        with contextlib.suppress(UserError):
            self.search(self.make_strategy(0), engine, tmp_path, failures=1.0)
        assert {m.status for m in _candidates(engine.models)} <= {ModelStatus.Failed}

    def test_leaves_the_engine(self, tmp_path: Path) -> None:
        """Its callbacks must not hear of models that are submitted later (the final phase)."""
        engine = ReplayEngine(self.budget)
        self.search(self.make_strategy(0), engine, tmp_path)
        left = {str(event): calls for event, calls in engine._callbacks.items() if calls}
        assert left == {}, f"callbacks that are still registered: {left}"

    def test_one_of_two_ways_to_resume_is_claimed(self) -> None:
        assert self.resumes_by_replay or self.resumes_by_state

    def test_resumes_by_replay(self, tmp_path: Path) -> None:
        if not self.resumes_by_replay:
            pytest.skip("resumes_by_replay = False: not claimed")
        _, whole = self.run(tmp_path / "whole")
        _, cut = self.run(tmp_path / "cut", budget=self.interrupted)
        assert _asked(cut) == _asked(whole)[: self.interrupted]
        before = _records(tmp_path / "cut")
        _, resumed = self.run(tmp_path / "cut")
        assert _asked(resumed) == _asked(whole)
        after = _records(tmp_path / "cut")
        assert before.items() <= after.items(), "a finished trial was run again"
        assert len(after) == len(_records(tmp_path / "whole"))

    def test_resumes_by_state(self, tmp_path: Path) -> None:
        if not self.resumes_by_state:
            pytest.skip("resumes_by_state = False: not claimed")
        uninterrupted, whole_models = self.run(tmp_path / "whole")
        whole = _asked(_candidates(whole_models))
        strategy, cut_models = self.run(tmp_path / "cut", budget=self.interrupted)
        cut = _asked(_candidates(cut_models))
        again, resumed_models = self.run(
            tmp_path / "cut", budget=self.budget - len(cut), state=strategy.state_dict()
        )
        resumed = _asked(_candidates(resumed_models))
        assert [sample for sample in resumed if sample in cut] == [], "asked for again"
        left = whole[len(cut) :]
        assert resumed[: len(left)] == left, "not the samples of an uninterrupted search"
        if len(resumed) == len(left):  # else it saved itself a phase, and had budget for more
            assert again.state_dict() == uninterrupted.state_dict()

    def test_state_is_plain(self, tmp_path: Path) -> None:
        if not self.plain_state:
            pytest.skip("plain_state = False: not claimed")
        state = self.run(tmp_path)[0].state_dict()
        assert json.loads(json.dumps(state, allow_nan=False)) == state


def _phase(model: Any) -> str:
    return str(getattr(model.evaluator, "phase", "candidate"))


def _candidates(models: Sequence[Any]) -> list[Any]:
    """Without the models of phases that belong to the strategy, such as a supernet."""
    return [model for model in models if _phase(model) == "candidate"]


def _asked(models: Sequence[Any]) -> list[tuple[str, str]]:
    """Phase and sample of what was submitted, in order."""
    return [(_phase(model), content_key(dict(model.sample))) for model in models]


def _records(store: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in store.glob("*/record.json")}
