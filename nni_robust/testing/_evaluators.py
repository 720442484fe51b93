"""What every evaluator promises, as a test class to inherit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
from nni.nas.evaluator import Evaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.execution.event import ModelEventType
from nni.nas.space import SimplifiedModelSpace

from nni_robust.nni_adapter.mocking import mocked_trial, trial_parameters_kept
from nni_robust.sampling import Sample, draw
from nni_robust.testing._checks import assert_no_pickled_files, sent_and_received
from nni_robust.testing._parts import TinySpace
from nni_robust.trial import StoredEvaluator

__all__ = ["EvaluatorConformance"]


class EvaluatorConformance:
    """Tests of one evaluator; implement :meth:`make_evaluator` and :meth:`make_others`.

    Attributes
    ----------
    metrics
        Names that the final metric must have.
    times
        Metrics that differ from run to run, such as seconds.
    stored
        It claims to keep results (:class:`nni_robust.trial.StoredEvaluator`).
    reports_curve
        It claims to report intermediate metrics.
    """

    metrics: Sequence[str] = ("default",)
    times: Sequence[str] = ("seconds",)
    stored: bool = True
    reports_curve: bool = True

    def make_evaluator(self, store: str | None) -> Any:
        """A fresh evaluator with as little work as possible; equal whenever it is called.

        Parameters
        ----------
        store
            Folder of the run's store, or None to keep nothing.
        """
        raise NotImplementedError("override make_evaluator(self, store)")

    def make_others(self) -> Mapping[str, Any]:
        """Evaluators without a store whose results may differ, by the setting that does it."""
        raise NotImplementedError("override make_others(self)")

    def make_space(self) -> Any:
        """A space that it can evaluate: pictures of 3 channels, 10 classes, of any size."""
        return TinySpace()

    def make_sample(self, space: Any) -> Sample:
        """An architecture of that space, always the same."""
        return draw(space.simplify(), np.random.RandomState(0))

    def model(self, evaluator: Any) -> Any:
        """NNI's executable model of the sample."""
        space = self.make_space()
        return SimplifiedModelSpace.from_model(space, evaluator).freeze(self.make_sample(space))

    def run(self, evaluator: Any) -> tuple[Any, list[Any]]:
        """Final metric as it was reported, and intermediate ones, on NNI's sequential engine."""
        engine, seen = SequentialExecutionEngine(), dict[str, list[Any]](final=[], curve=[])
        for event, name in (
            (ModelEventType.FinalMetric, "final"),
            (ModelEventType.IntermediateMetric, "curve"),
        ):
            engine.register_model_event_callback(
                event, lambda e, name=name: seen[name].append(e.metric)
            )
        with torch.random.fork_rng(), trial_parameters_kept():
            torch.seed()  # no luck: what is repeated is the evaluator's doing
            engine.submit_models(self.model(evaluator))
        assert len(seen["final"]) == 1, f"{len(seen['final'])} final metrics; one is expected"
        return seen["final"][0], seen["curve"]

    def without_times(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What must be the same in every run."""
        return {name: value for name, value in metrics.items() if name not in self.times}

    def test_is_an_nni_evaluator(self) -> None:
        made = self.make_evaluator(None)
        assert isinstance(made, Evaluator)
        assert isinstance(made, StoredEvaluator) == self.stored, "see the claim `stored`"

    def test_metrics_are_a_flat_dict_of_finite_numbers(self) -> None:
        final, _ = self.run(self.make_evaluator(None))
        assert isinstance(final, dict)
        for name, value in final.items():
            assert isinstance(name, str)
            assert type(value) in (int, float), f"{name} is {value!r} ({type(value).__name__})"
            assert math.isfinite(value), f"{name} is {value}"

    def test_metrics_have_their_names(self) -> None:
        final, _ = self.run(self.make_evaluator(None))
        assert "default" in final, "no 'default', which strategies maximise"
        assert [name for name in self.metrics if name not in final] == []

    def test_runs_in_nnis_mock_runtime(self) -> None:
        """NNI's own way to try an evaluator; it is told of the score and of the curve."""
        evaluator = self.make_evaluator(None)
        model = self.model(evaluator)
        with mocked_trial(model):
            assert nni.get_current_parameter() is model
            model.execute()
        assert isinstance(model.metrics.final, float)
        if self.reports_curve:
            assert len(model.metrics.intermediates) >= 1

    def test_reports_a_curve_of_numbers(self) -> None:
        _, curve = self.run(self.make_evaluator(None))
        if not self.reports_curve:
            assert curve == [], "it reports a curve: claim reports_curve"
            return
        assert curve
        for point in curve:
            values = point if isinstance(point, dict) else {"default": point}
            assert "default" in values
            assert all(math.isfinite(value) for value in values.values()), f"{point}"

    def test_repeats_itself(self) -> None:
        first, curve = self.run(self.make_evaluator(None))
        again, curve_again = self.run(self.make_evaluator(None))
        assert self.without_times(again) == self.without_times(first)
        assert len(curve_again) == len(curve)

    def test_survives_nnis_serialisation(self) -> None:
        made = self.make_evaluator("some/store")
        model = self.model(made)
        sent = sent_and_received(model)
        assert isinstance(sent.evaluator, Evaluator)
        if self.stored:
            assert sent.evaluator.store == "some/store"
            assert sent.evaluator.key(sent) == made.key(model), "a trial would not find its result"

    def test_equal_settings_have_equal_keys(self) -> None:
        self.needs_a_store()
        made = self.make_evaluator(None)
        key = made.key(self.model(made))
        for other in (self.make_evaluator(None), self.make_evaluator("elsewhere")):
            assert other.key(self.model(other)) == key

    def test_other_settings_have_other_keys(self) -> None:
        self.needs_a_store()
        others = self.make_others()
        assert others, "make_others() must give at least one"
        all_of_them = {"(as it is)": self.make_evaluator(None), **others}
        seen: dict[str, str] = {}
        for name, other in all_of_them.items():
            key = other.key(self.model(other))
            assert key not in seen, f"{name} has the key of {seen[key]}"
            seen[key] = name

    def test_other_samples_have_other_keys(self) -> None:
        self.needs_a_store()
        made, space = self.make_evaluator(None), self.make_space()
        mutables, rng = space.simplify(), np.random.RandomState(1)
        frozen = SimplifiedModelSpace.from_model(space, made)
        samples = {json.dumps(draw(mutables, rng), sort_keys=True) for _ in range(10)}
        keys = {made.key(frozen.freeze(json.loads(text))) for text in samples}
        assert len(keys) == len(samples)

    def test_settings_are_json(self) -> None:
        self.needs_a_store()
        settings = self.make_evaluator(None).settings()
        assert json.loads(json.dumps(settings, allow_nan=False)).keys() == settings.keys()

    def test_answers_from_the_store_without_work(self, tmp_path: Path) -> None:
        self.needs_a_store()
        first, _ = self.run(self.make_evaluator(str(tmp_path)))
        before = _files(tmp_path)
        again = self.make_evaluator(str(tmp_path))
        model = self.model(again)
        known = again.finished(model)
        assert known is not None, "the result is not in the store"
        assert known.items() <= first.items()
        again.measure = _no_work
        final, curve = self.run(again)
        assert final == first
        assert curve == []
        assert _files(tmp_path) == before

    def test_keeps_a_readable_record(self, tmp_path: Path) -> None:
        self.needs_a_store()
        made = self.make_evaluator(str(tmp_path))
        final, _ = self.run(made)
        model = self.model(made)
        record = json.loads((tmp_path / made.key(model) / "record.json").read_text())
        assert record["metrics"].items() <= final.items()
        assert record["sample"] == model.sample
        assert_no_pickled_files(tmp_path)

    def needs_a_store(self) -> None:
        """Skip where the claim `stored` is not made."""
        if not self.stored:
            pytest.skip("stored = False: not claimed")


def _no_work(*_: Any) -> Any:
    raise AssertionError("the result was in the store, but was computed again")


def _files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }
