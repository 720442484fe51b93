"""The suite for evaluators: ours pass it, and broken ones fail the test that is meant for them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nni
import pytest
import torch

from nni_robust import registry
from nni_robust.testing import EvaluatorConformance, HashEvaluator

TASK: dict[str, Any] = {"threat": {"eps": 0.1}, "train_limit": 48, "validation_limit": 16}
TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 24,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
}


class TestAdversarialTraining(EvaluatorConformance):
    metrics = ("default", "clean", "fgsm@0.1", "params", "macs", "seconds")

    def make_evaluator(self, store: str | None, **changes: Any) -> Any:
        arguments = {"task": TASK, "train": TRAIN, "attacks": ["fgsm"], "store": store, **changes}
        return registry.evaluators.get("adversarial-training")(**arguments)

    def make_others(self) -> Mapping[str, Any]:
        changes: dict[str, Any] = {
            "seed": 1,
            "attacks": ["pgd2"],
            "split": "test",
            "train": None,
            "score_limit": 8,
            "strengths": [0.05, 0.1],
            "fsp": 8,
            "eps_values": [0.05],
            "task": {**TASK, "validation_limit": 15},
        }
        return {name: self.make_evaluator(None, **{name: v}) for name, v in changes.items()}


class TestTabular(EvaluatorConformance):
    metrics = ("default", "clean", "params", "macs", "seconds")
    reports_curve = False

    def make_space(self) -> Any:
        with torch.device("meta"):  # look-ups need no weights
            return registry.search_spaces.get("wide-resnet")(
                10,
                depths=[11, 11, 11],
                widths=[16, 16, 16],
                depth_values=[4, 5, 7, 9, 11],
                width_values=[8, 10, 12, 14, 16],
            )

    def make_evaluator(self, store: str | None, **changes: Any) -> Any:
        arguments = {"task": {"attack": "pgd20"}, "store": store, "as_trials": True, **changes}
        return registry.evaluators.get("tabular")(**arguments)

    def make_others(self) -> Mapping[str, Any]:
        changes: dict[str, Any] = {"metric": "clean", "task": {"attack": "fgsm"}}
        return {name: self.make_evaluator(None, **{name: v}) for name, v in changes.items()}


class TestSuitesOwn(EvaluatorConformance):
    reports_curve = False

    def make_evaluator(self, store: str | None) -> Any:
        return HashEvaluator(store=store)

    def make_others(self) -> Mapping[str, Any]:
        return {"seed": HashEvaluator(seed=1), "failures": HashEvaluator(failures=0.1)}


def test_every_registered_evaluator_is_tested() -> None:
    assert set(registry.evaluators.names()) == {"adversarial-training", "tabular"}


# --- broken on purpose ---------------------------------------------------------------------------


@nni.trace
class WordsForNumbers(HashEvaluator):
    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        record = super().measure(model, folder)
        return {"metrics": {**record["metrics"], "quality": True}}


@nni.trace
class NotANumber(HashEvaluator):
    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        record = super().measure(model, folder)
        return {"metrics": {**record["metrics"], "clean": math.nan}}


@nni.trace
class ForgetsTheSeed(HashEvaluator):
    """In its key."""

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "seed": 0}


@nni.trace
class NamesTheStore(HashEvaluator):
    """In its key, so that a moved run folder is of no use."""

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "store": self.store}


@nni.trace
class Unseeded(HashEvaluator):
    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        return {"metrics": {"default": random.random()}}


@nni.trace
class WorksAgain(HashEvaluator):
    def _execute(self, model: Any) -> dict[str, Any]:
        self.measure(model, None)
        return super()._execute(model)


@nni.trace
class KeepsAPickle(HashEvaluator):
    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        if folder is not None:
            torch.save({"weights": torch.ones(1)}, folder / "weights.bin")
        return super().measure(model, folder)


class Device:
    """An argument that is no plain value."""


@nni.trace
class TakesAnObject(HashEvaluator):
    def __init__(self, device: Any, store: str | None = None) -> None:
        super().__init__(store=store)
        self.device = device


@nni.trace
class Silent(HashEvaluator):
    """Has no score under the name that counts."""

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        record = super().measure(model, folder)
        return {"metrics": {"accuracy": record["metrics"]["default"]}}


class Suite(EvaluatorConformance):
    kind: Any = HashEvaluator
    reports_curve = False

    def make_evaluator(self, store: str | None, **changes: Any) -> Any:
        return self.kind(store=store, **changes)

    def make_others(self) -> Mapping[str, Any]:
        return {"seed": self.make_evaluator(None, seed=1)}


class SuiteOfWordsForNumbers(Suite):
    kind = WordsForNumbers


class SuiteOfNotANumber(Suite):
    kind = NotANumber


class SuiteOfForgetsTheSeed(Suite):
    kind = ForgetsTheSeed


class SuiteOfNamesTheStore(Suite):
    kind = NamesTheStore


class SuiteOfUnseeded(Suite):
    kind = Unseeded


class SuiteOfWorksAgain(Suite):
    kind = WorksAgain


class SuiteOfKeepsAPickle(Suite):
    kind = KeepsAPickle


class SuiteOfTakesAnObject(Suite):
    def make_evaluator(self, store: str | None, **changes: Any) -> Any:
        return HashEvaluator(**changes) if changes else TakesAnObject(Device(), store=store)


class SuiteOfNoCurve(Suite):
    """Claims a curve that it does not report."""

    reports_curve = True


class SuiteOfSilent(Suite):
    kind = Silent


@pytest.mark.parametrize(
    ("suite", "meant"),
    [
        (SuiteOfWordsForNumbers, {"test_metrics_are_a_flat_dict_of_finite_numbers"}),
        (SuiteOfForgetsTheSeed, {"test_other_settings_have_other_keys"}),
        (SuiteOfNamesTheStore, {"test_equal_settings_have_equal_keys"}),
        (SuiteOfUnseeded, {"test_repeats_itself"}),
        (SuiteOfWorksAgain, {"test_answers_from_the_store_without_work"}),
        (SuiteOfKeepsAPickle, {"test_keeps_a_readable_record"}),
        (SuiteOfTakesAnObject, {"test_survives_nnis_serialisation"}),
        (SuiteOfNoCurve, {"test_reports_a_curve_of_numbers", "test_runs_in_nnis_mock_runtime"}),
    ],
)
def test_broken_evaluators_fail_the_test_that_is_meant(
    suite: type, meant: set[str], failing: Callable[[type], set[str]]
) -> None:
    assert failing(suite) == meant


@pytest.mark.parametrize(
    ("suite", "meant"),
    [
        (SuiteOfNotANumber, "test_metrics_are_a_flat_dict_of_finite_numbers"),
        (SuiteOfSilent, "test_metrics_have_their_names"),
    ],
)
def test_evaluators_broken_in_several_ways_fail_that_test_too(
    suite: type, meant: str, failing: Callable[[type], set[str]]
) -> None:
    assert meant in failing(suite)
