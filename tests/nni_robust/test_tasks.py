"""Tasks by name and of files: what the catalogue says, and what a teacher alone stands for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

import nni_robust.data  # noqa: F401 - registers the data sets
from nni_robust.architecture import load_architecture
from nni_robust.attacks import attack_from_spec
from nni_robust.config import as_mapping
from nni_robust.errors import UserError
from nni_robust.registry import datasets
from nni_robust.task import Task
from nni_robust.tasks import list_tasks, load_task_file, task_shape


def test_a_name_says_everything() -> None:
    task = load_task_file("cifar10/wrn-46-14/cw40")
    assert (task.dataset, task.attack) == ("cifar10", "cw40")
    assert task.teacher is not None
    assert task.teacher.architecture == "wrn-46-14"
    assert task.budget is not None
    assert (task.budget.macs, task.budget.tolerance) == (20e9, 0.1)
    assert (task.threat.norm, task.threat.eps) == ("linf", 8 / 255)
    assert task.validation * 50_000 == 1024


def test_the_catalogue_is_whole_and_consistent() -> None:
    """3 data sets x 8 teachers x 5 attacks, each with a teacher near its budget at its pictures."""
    names = list_tasks()
    assert len(names) == len(set(names)) == 120
    assert len(list_tasks("cifar100/*/autoattack")) == 8
    assert list_tasks("svhn/*") == []
    costs: dict[Any, Any] = {}
    for name in names:
        task = load_task_file(name)
        assert task.dataset in datasets
        if task.attack != "clean":
            assert task.attack is not None
            attack_from_spec(task.attack, task.threat)
        assert task.teacher is not None
        assert task.budget is not None
        classes, shape = task_shape(task)
        key = (task.teacher.architecture, classes)
        if key not in costs:
            costs[key] = load_architecture(task.teacher.architecture).cost(shape, classes)
        # Published "10 G" networks have up to 10.84 G.
        assert 0.9 < task.budget.excess(costs[key]) < 1.1
        assert round(task.validation * (100_000 if classes == 200 else 50_000)) == 1024


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10/wrn-28-10/pgd-20", "no attack 'pgd-20'; did you mean 'pgd20'. .allowed: clean"),
        ("cifar10/wrn-28-11/pgd20", "no teacher 'wrn-28-11'; did you mean 'wrn-28-10'"),
        ("cifar/wrn-28-10/pgd20", "no dataset 'cifar'; did you mean 'cifar10'. .allowed: cifar10,"),
        ("cifar10/wrn-28-10", "unknown task 'cifar10/wrn-28-10'; did you mean 'cifar10/wrn-28-10/"),
        ("nothing", "a task is called data set/teacher/attack"),
        ("none.yaml", "no file 'none.yaml'"),
    ],
)
def test_unknown_tasks(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task_file(name)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_files(tmp_path: Path, suffix: str) -> None:
    """The fields of a task, in a section or not; a teacher's paths are beside the file."""
    named = load_task_file("cifar10/wrn-a1/fgsm")
    content = as_mapping(named)
    path = tmp_path / f"own{suffix}"
    for value in (content, {"task": content}, {"task": "cifar10/wrn-a1/fgsm"}):
        path.write_text(json.dumps(value))  # JSON is YAML
        assert load_task_file(path) == named
        assert load_task_file(str(path)) == named
    content["teacher"] = {"architecture": "mine/small.yaml", "weights": "w.safetensors"}
    path.write_text(json.dumps(content))
    teacher = load_task_file(path).teacher
    assert teacher is not None
    assert teacher.architecture == str(tmp_path / "mine/small.yaml")
    assert teacher.weights == str(tmp_path / "w.safetensors")
    path.write_text(json.dumps({"dataset": "digits", "atack": "fgsm"}))
    with pytest.raises(UserError, match=r"unknown key 'atack' .* did you mean 'attack'"):
        load_task_file(path)
    path.write_text(json.dumps({"task": {"attack": "fgsm"}}))
    assert load_task_file(path) == Task(attack="fgsm")


def upstream(**changes: Any) -> dict[str, Any]:
    """A model file of the authors, as their CIFAR-100 folder has it."""
    return {
        "num_classes": 100,
        "model": {
            "name": "PreActResNet",
            "channel_configs": [16, 112, 288, 256],
            "depth_configs": [17, 17, 8],
            "num_classes": 100,
            "block_types": ["basic_block"] * 3,
        },
        "criterion": {"name": "TradesLoss", "epsilon": 0.015},
        "dataset": {"name": "DatasetGenerator", "dataset_type": "CIFAR100"},
        **changes,
    }


def test_a_teacher_file_alone(tmp_path: Path) -> None:
    """`--task WRN-A1.yaml`: data set and strength of the file, PGD-20, the nearest budget."""
    path = tmp_path / "WRN-A2.yaml"
    path.write_text(yaml.safe_dump(upstream()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        task = load_task_file(path)
    assert (task.dataset, task.attack, task.threat.eps) == ("cifar100", "pgd20", 0.015)
    assert task.budget is not None
    assert task.budget.macs == 10e9  # it has 10.836 G
    assert task.teacher is not None
    teacher = load_architecture(task.teacher.architecture)
    assert (teacher.name, teacher.num_classes) == ("wrn-a2", 100)

    bare = {"model": upstream()["model"]}  # as in the folder Advanced_CIFAR10
    path.write_text(yaml.safe_dump(bare))
    assert load_task_file(path).dataset == "cifar100"
    path.write_text(yaml.safe_dump(upstream(dataset={"dataset_type": "SVHN"})))
    with pytest.raises(UserError, match="dataset_type: 'SVHN' is not allowed"):
        load_task_file(path)


def test_a_teacher_of_the_zoo_or_of_our_files_alone(tmp_path: Path) -> None:
    task = load_task_file("wrn-70-16-tiny-imagenet")
    assert task.dataset == "tiny-imagenet"
    assert task.budget is not None
    assert task.budget.macs == 40e9
    load_architecture("wrn-28-10").save(tmp_path / "mine.yaml")
    mine = load_task_file(tmp_path / "mine.yaml")
    assert mine.teacher is not None
    assert mine.teacher.architecture == str(tmp_path / "mine.yaml")
    assert (mine.dataset, mine.budget) == ("cifar10", load_task_file("wrn-28-10").budget)
    with pytest.raises(UserError, match="a teacher for 1000 classes, which tells no data set"):
        load_task_file("robnet-large-imagenet")


def test_shapes() -> None:
    assert task_shape(load_task_file("tiny-imagenet/wrn-a1/clean")) == (200, (3, 64, 64))
    assert task_shape(Task(dataset="cifar100:/elsewhere")) == (100, (3, 32, 32))
    assert task_shape(Task(dataset="digits")) == (10, (3, 8, 8))
