"""A trial's process dies: it is started again, and what NNI says twice or late does no harm."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import FinalMetricEvent, IntermediateMetricEvent, TrainingEndEvent
from nni.nas.space import ModelStatus, SimplifiedModelSpace

from nni_robust.errors import UserError
from nni_robust.experiments import run_experiment
from nni_robust.experiments._records import Recorder
from nni_robust.nni_adapter.replay import ReplayMixin
from nni_robust.search_spaces import WideResNetSpace
from nni_robust.store import Store, read_records
from nni_robust.trial import StoredEvaluator

Write = Callable[..., str]


class Planned(StoredEvaluator):
    """Each attempt does the next of a plan: ``ok``, ``raise``, ``kill``, ``stop``, ``late``."""

    def __init__(self, store: Path, *plan: str) -> None:
        self.store, self.plan = str(store), plan

    def settings(self) -> dict[str, Any]:
        return {}

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        assert folder is not None
        attempt = len(list(folder.glob("attempt-*")))
        (folder / f"attempt-{attempt}").touch()
        if self.plan[attempt] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.plan[attempt] == "stop":
            os.kill(os.getpid(), signal.SIGINT)
        if self.plan[attempt] == "raise":
            raise RuntimeError("a reason of its own")
        return {"metrics": {"default": 0.25, "seconds": 0.0}}

    def _execute(self, model: Any) -> dict[str, Any]:
        record = super()._execute(model)
        if self.plan[0] == "late":  # the result is stored, NNI heard nothing of it
            os.kill(os.getpid(), signal.SIGKILL)
        return record


class _Forks(ExecutionEngine):
    """Runs every model in a process of its own, as NNI's training service does."""

    def submit_models(self, *models: Any) -> None:
        for model in models:
            model.status = ModelStatus.Training
            child = os.fork()
            if child == 0:
                try:
                    model.execute()
                    os._exit(0)
                finally:
                    os._exit(1)
            _, how = os.waitpid(child, 0)
            status = ModelStatus.Failed if how else ModelStatus.Trained
            self.dispatch_model_event(TrainingEndEvent(model, status))


class Engine(ReplayMixin, _Forks):
    asked = 0

    def allow_another(self) -> None:
        self.asked += 1


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """Run one model under a plan: the engine and the model; ``candidates.jsonl`` is written."""

    def run(
        *plan: str,
        prepare: Callable[[Store, str], None] | None = None,
        stopping: bool = False,
    ) -> tuple[Any, Any]:
        with torch.device("meta"):
            space = WideResNetSpace(10, depths=(4, 4, 4), widths=(2, 2, 2))
        executable = SimplifiedModelSpace.from_model(space, Planned(tmp_path / "store", *plan))
        model = executable.random(random_state=np.random.RandomState(0))
        if prepare is not None:
            prepare(Store(tmp_path / "store"), model.evaluator.key(model))
        engine = Engine()
        engine.stopping = stopping
        Recorder(tmp_path, Store(tmp_path / "store"), lambda line: None, 1).listen(engine)
        engine.submit_models(model)
        return engine, model

    return run


def attempts(folder: Path) -> int:
    return len(list(folder.glob("store/*/attempt-*")))


@pytest.mark.parametrize("kills", [0, 1, 2])
def test_killed_trial_is_started_again(tmp_path: Path, tell: Any, kills: int) -> None:
    engine, model = tell(*["kill"] * kills, "ok")
    assert attempts(tmp_path) == kills + 1
    assert engine.asked == kills
    assert engine.submitted == 1  # a retry costs the strategy nothing of its budget
    assert model.status == ModelStatus.Trained
    assert model.metrics.final == 0.25
    (record,) = read_records(tmp_path / "candidates.jsonl")
    assert record["status"] == "ok"


def test_trial_killed_every_time_is_a_failed_candidate(tmp_path: Path, tell: Any) -> None:
    _, model = tell(*["kill"] * 9)
    assert attempts(tmp_path) == 3
    assert model.status == ModelStatus.Failed
    (record,) = read_records(tmp_path / "candidates.jsonl")
    assert record["status"] == "failed"
    assert "died 3 times without giving a reason" in record["error"]
    # A resumed run tries it again: the machine may have more memory now.
    _, again = tell(*["kill"] * 3, "ok")
    assert again.status == ModelStatus.Trained


@pytest.mark.parametrize("plan", [("raise", "ok"), ("kill", "raise", "ok")])
def test_trial_that_said_why_is_not(tmp_path: Path, tell: Any, plan: tuple[str, ...]) -> None:
    _, model = tell(*plan)
    assert attempts(tmp_path) == len(plan) - 1
    assert model.status == ModelStatus.Failed
    (record,) = read_records(tmp_path / "candidates.jsonl")
    assert record["error"] == "RuntimeError: a reason of its own"


def test_reason_of_an_earlier_run_is_not_the_reason_of_this_one(tmp_path: Path, tell: Any) -> None:
    _, model = tell("kill", "ok", prepare=lambda store, key: store.fail(key, "long ago"))
    assert model.status == ModelStatus.Trained
    assert attempts(tmp_path) == 2
    assert not list(tmp_path.glob("store/*/error.json"))


def test_trial_that_died_after_its_result_was_stored_is_done(tmp_path: Path, tell: Any) -> None:
    _, model = tell("late")
    assert model.status == ModelStatus.Trained
    assert model.metrics.final == 0.25
    assert attempts(tmp_path) == 1
    assert read_records(tmp_path / "candidates.jsonl")[0]["status"] == "ok"


def test_trial_stopped_by_hand_stays_stopped(tmp_path: Path, tell: Any) -> None:
    """NNI's web UI and nnictl stop a trial by SIGINT."""
    _, model = tell("stop", "ok")
    assert attempts(tmp_path) == 1
    assert model.status == ModelStatus.Failed
    assert "stopped, by hand" in read_records(tmp_path / "candidates.jsonl")[0]["error"]


def test_no_trial_is_started_again_while_all_is_stopped(tmp_path: Path, tell: Any) -> None:
    _, model = tell("kill", "ok", stopping=True)
    assert attempts(tmp_path) == 1
    assert not model.status.completed()
    assert not read_records(tmp_path / "candidates.jsonl")


@pytest.mark.parametrize("plan", [("ok",), ("raise",)])
def test_repeated_and_late_messages(tmp_path: Path, tell: Any, plan: tuple[str, ...]) -> None:
    engine, model = tell(*plan)
    status, records = model.status, read_records(tmp_path / "candidates.jsonl")
    heard = []
    for kind in ("final_metric", "intermediate_metric", "training_end"):
        engine.register_model_event_callback(kind, heard.append)
    for event in (
        FinalMetricEvent(model, {"default": 0.9}),
        IntermediateMetricEvent(model, 0.9),
        TrainingEndEvent(model, ModelStatus.Failed),
        TrainingEndEvent(model, ModelStatus.Trained),
    ):
        engine.dispatch_model_event(event)
    assert not heard
    assert model.status == status
    assert model.metrics.final in (None, 0.25)
    assert attempts(tmp_path) == 1
    assert read_records(tmp_path / "candidates.jsonl") == records


def test_second_final_metric_does_not_replace_the_first(tell: Any) -> None:
    engine, model = tell("ok")
    model.status = ModelStatus.Training
    engine.dispatch_model_event(FinalMetricEvent(model, {"default": 0.9}))
    assert model.metrics.final == 0.25


def test_clock_that_goes_backwards(
    experiment_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock loses a minute with every look, from start to resume."""
    started, looks = time.time(), iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: started - 60 * next(looks))
    table = {"name": "tabular", "as_trials": True}
    file = experiment_file(
        task={"dataset": "blank", "threat": {"eps": "8/255"}, "attack": "pgd20"},
        space={
            "name": "wide-resnet",
            "depths": [11, 11, 11],
            "widths": [16, 16, 16],
            "depth_values": [4, 5, 7, 9, 11],
            "width_values": [8, 10, 12, 14, 16],
        },
        strategy={"name": "random"},
        evaluator=table,
        final=None,
        nni={"engine": "sequential", "trials": 6},
    )
    run = run_experiment(file, out="run", html=False, report=lambda line: None)
    first = read_records(run / "candidates.jsonl")
    assert [r["status"] for r in first] == ["ok"] * 6
    (run / "candidates.jsonl").unlink()
    for record in list(run.glob("store/*/record.json"))[:2]:
        record.unlink()
    run_experiment(file, out="run", resume=True, html=False, report=lambda line: None)
    again = read_records(run / "candidates.jsonl")
    assert [r["sample"] for r in again] == [r["sample"] for r in first]
    with pytest.raises(UserError, match="seed: 0 there, 1 now"):
        run_experiment(file, out="run", resume=True, overrides=["seed=1"])
