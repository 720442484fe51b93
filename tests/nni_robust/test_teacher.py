"""Teachers: loading, refusing, training as a trial, and taking them from the store."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nni_robust.architecture import Architecture, load_architecture
from nni_robust.data import absolute_task, load_task
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.store import Store
from nni_robust.task import Budget, Task
from nni_robust.teacher import (
    Teacher,
    TeacherTraining,
    load_teacher,
    source_key,
    teacher_from_store,
)
from nni_robust.threat import ThreatModel
from nni_robust.training import save_weights

SHAPE = (3, 8, 8)
CODE = "33123210120232"
TASK: dict[str, Any] = {
    "threat": {"eps": 0.1},
    "train_limit": 96,
    "validation_limit": 48,
    "test_limit": 24,
}
TRAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 48,
    "lr": 0.05,
    "loss": "fast",
    "attack": {"steps": 1},
    "validation_attack": None,
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An architecture file of a tiny network."""
    from nni_robust.search_spaces import RobNetSpace

    path = tmp_path / "small.yaml"
    arguments = {"init_channels": 2, "cells": 3}
    sample = RobNetSpace.decode(CODE, cells=3)
    Architecture("small", "robnet", arguments, sample, input_shape=SHAPE).save(path)
    return path


def weights(path: Path, to: Path, seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = load_architecture(path).build()
    save_weights(network, to)
    return network.state_dict()


def test_weights_beside_the_architecture(small: Path, tmp_path: Path) -> None:
    state = weights(small, tmp_path / "w.safetensors")
    teacher = load_teacher(Teacher(str(small), str(tmp_path / "w.safetensors")), 10, SHAPE)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(state[k], v) for k, v in teacher.state_dict().items())


def test_weights_that_the_architecture_file_names(small: Path, tmp_path: Path) -> None:
    state = weights(small, tmp_path / "w.safetensors")
    small.write_text(small.read_text().replace("weights: null", "weights: w.safetensors"))
    teacher = load_teacher(Teacher(str(small)), 10, SHAPE)
    assert all(torch.equal(state[k], v) for k, v in teacher.state_dict().items())


def test_wrong_weights_cost_one_sentence(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher '.*small\.yaml' has no weights"):
        load_teacher(Teacher(str(small)), 10, SHAPE)
    with pytest.raises(UserError, match=r"no weights file '.*gone\.safetensors'"):
        load_teacher(Teacher(str(small), str(tmp_path / "gone.safetensors")), 10, SHAPE)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"what")
    with pytest.raises(UserError, match="no readable safetensors file"):
        load_teacher(Teacher(str(small), str(damaged)), 10, SHAPE)
    save_weights(nn.Linear(2, 2), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not fit the network"):
        load_teacher(Teacher(str(small), str(tmp_path / "other.safetensors")), 10, SHAPE)
    weights(small, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"'classifier\.weight' has shape"):
        load_teacher(Teacher(str(small), str(tmp_path / "w.safetensors")), 7, SHAPE)
    with pytest.raises(UserError, match=r"does not take pictures of shape \(1, 8, 8\)"):
        load_teacher(Teacher(str(small), str(tmp_path / "w.safetensors")), 10, (1, 8, 8))
    with pytest.raises(UserError, match="unknown architecture 'robnet-smal'; did you mean"):
        load_teacher(Teacher("robnet-smal", "w.safetensors"), 10, SHAPE)


@pytest.fixture
def robustbench(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A package called robustbench that holds one small network."""
    calls: list[dict[str, Any]] = []

    def load_model(name: str, **settings: Any) -> nn.Module:
        calls.append({"name": name, **settings})
        torch.manual_seed(3)
        known: dict[str, dict[str, nn.Module]] = {
            "Linf": {"Rice2020Overfitting": nn.Sequential(nn.Flatten(), nn.Linear(192, 10))},
            "L2": {"Augustin2020": nn.Sequential(nn.Flatten(), nn.Linear(192, 9))},
        }
        if name == "Broken":
            raise OSError("no network")
        return known[settings["threat_model"]][name]

    utils = types.ModuleType("robustbench.utils")
    utils.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    return calls


def test_robustbench(robustbench: list[dict[str, Any]]) -> None:
    teacher = load_teacher(Teacher("robustbench:Rice2020Overfitting"), 10, SHAPE)
    assert teacher(torch.zeros(2, *SHAPE)).shape == (2, 10)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert robustbench[0]["dataset"] == "cifar10"
    with pytest.raises(UserError, match="has 9 outputs; the task has 10 classes"):
        load_teacher(Teacher("robustbench:Augustin2020"), 10, SHAPE)
    with pytest.raises(UserError, match="RobustBench knows no such network for cifar100"):
        load_teacher(Teacher("robustbench:Nobody"), 100, SHAPE)
    with pytest.raises(UserError, match="could not be loaded: OSError: no network"):
        load_teacher(Teacher("robustbench:Broken"), 10, SHAPE)
    with pytest.raises(UserError, match="is not allowed with 7 classes"):
        load_teacher(Teacher("robustbench:Rice2020Overfitting"), 7, SHAPE)
    with pytest.raises(UserError, match="which brings its own"):
        load_teacher(Teacher("robustbench:Rice2020Overfitting", "w.safetensors"), 10, SHAPE)


def test_without_robustbench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    with pytest.raises(UserError, match="needs RobustBench: pip install"):
        load_teacher(Teacher("robustbench:Rice2020Overfitting"), 10, SHAPE)


def test_a_teacher_from_robustbench_goes_through_the_store(
    robustbench: list[dict[str, Any]], tmp_path: Path
) -> None:
    task = {**TASK, "teacher": {"architecture": "robustbench:Rice2020Overfitting"}}
    trial = TeacherTraining(task=task, store=str(tmp_path), attacks=["fgsm"])
    record = trial._execute(None)
    found = teacher_from_store(tmp_path, record["key"], trial.teacher, 10, SHAPE)
    given = load_teacher(trial.teacher, 10, SHAPE)
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in given.state_dict().items())


def trained(small: Path, store: Path, **changes: Any) -> TeacherTraining:
    teacher = {"architecture": str(small), "train": TRAIN, "seed": 1}
    return TeacherTraining(
        task={**TASK, "teacher": teacher, **changes.pop("task", {})},
        store=str(store),
        **{"attacks": ["fgsm"], **changes},
    )


def test_training_as_a_trial(small: Path, tmp_path: Path) -> None:
    trial = trained(small, tmp_path / "store")
    assert (trial.phase, trial.uses_sample) == ("teacher", False)
    record = trial._execute(None)
    assert [h["epoch"] for h in record["history"]] == [1, 2]
    teacher = teacher_from_store(tmp_path / "store", record["key"], trial.teacher, 10, SHAPE)
    # An independent measurement agrees.
    task = Task(train_limit=96, validation_limit=48, threat=ThreatModel(eps=0.1))
    other = evaluate(teacher, load_task(task).validation, ["fgsm"], threat=task.threat)
    metrics = record["metrics"]
    assert {k: metrics[k] for k in other.metrics()} == other.metrics()
    assert metrics["default"] == metrics["fgsm@0.1"]
    assert metrics["params"] == sum(p.numel() for p in teacher.parameters())
    assert record["lipschitz"] > 0
    assert record["robust"] == (metrics["default"] >= 0.15)
    assert (record["warning"] is None) == record["robust"]
    assert trial.finished(None) == metrics


def test_a_teacher_that_is_not_robust_is_reported(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights(small, tmp_path / "w.safetensors")
    teacher = {"architecture": str(small), "weights": str(tmp_path / "w.safetensors")}
    record = TeacherTraining(task={**TASK, "teacher": teacher}, attacks=["pgd5"]).measure(
        None, None
    )
    assert record["robust"] is False
    assert "is not robust: its accuracy is" in record["warning"]
    assert record["warning"] in caplog.text
    assert record["history"] == []


def test_a_clean_task_asks_for_no_robustness(small: Path, tmp_path: Path) -> None:
    weights(small, tmp_path / "w.safetensors")
    teacher = {"architecture": str(small), "weights": str(tmp_path / "w.safetensors")}
    trial = TeacherTraining(task={**TASK, "attack": "clean", "teacher": teacher})
    record = trial.measure(None, None)
    assert record["metrics"]["default"] == record["metrics"]["clean"]
    assert (record["robust"], record["warning"]) == (None, None)


def test_tasks_that_differ_in_attack_or_budget_share_the_training(
    small: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = trained(small, store)
    first._execute(None)
    other = trained(small, store, attacks=["clean"], task={"budget": {"macs": "5G"}})
    assert other.key(None) != first.key(None)
    before = sorted(path.name for path in store.iterdir())
    record = other._execute(None)
    assert len(record["history"]) == 2
    assert sorted({*before, record["key"]}) == sorted(path.name for path in store.iterdir())
    a, b = (Store(store).folder(t.key(None)) / "weights.safetensors" for t in (first, other))
    assert a.read_bytes() == b.read_bytes()
    # What the training depends on changes it.
    assert trained(small, store, task={"threat": {"eps": 0.2}}).key(None) != first.key(None)
    assert trained(small, store, seed=1).key(None) != first.key(None)
    assert trained(small, store, task={"budget": {"macs": "5G"}}).key(None) == first.key(None)


def test_the_key_follows_the_files(small: Path, tmp_path: Path) -> None:
    teacher = Teacher(str(small), str(tmp_path / "w.safetensors"))
    missing = source_key(teacher)
    weights(small, tmp_path / "w.safetensors")
    one = source_key(teacher)
    weights(small, tmp_path / "w.safetensors", seed=6)
    assert len({missing, one, source_key(teacher)}) == 3


def test_absolute_paths() -> None:
    task = Task(teacher=Teacher("t/a.yaml", "t/w.safetensors"), budget=Budget(macs=1e9))
    teacher = absolute_task(task).teacher
    assert teacher == Teacher(str(Path.cwd() / "t/a.yaml"), str(Path.cwd() / "t/w.safetensors"))
    named = absolute_task(Task(teacher=Teacher("robnet-small"))).teacher
    assert named == Teacher("robnet-small")


def test_no_teacher() -> None:
    with pytest.raises(UserError, match=r"task\.teacher is missing"):
        TeacherTraining(task=TASK)
