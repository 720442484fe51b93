"""Every key of ``final`` and of the recipes: a bad value is refused before any trial starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nni_robust.cli import main
from nni_robust.experiments import run_experiment
from nni_robust.experiments.schema import Final
from nni_robust.store import read_json
from nni_robust.training import Recipe, TrainAttack

Write = Callable[..., str]

#: Key to bad values; a mapping under "+" holds settings that the value is bad with.
BAD_IN_FINAL: dict[str, list[Any]] = {
    "train": [3, {"epoch": 1}],
    "attacks": [[], ["pdg20"], ["clean", "fgsm"], ["fgsm", "fgsm"], [{"name": "pgd", "stepz": 1}]],
    "limit": [0, -3, "many"],
    "eps_factors": [[1, -1], [float("nan")], [float("inf")], ["x"], 3],
    "steps": [[0], [1.5], ["x"]],
    "corruptions": [["fogg"], ["fog", "fog"], "fog"],
    "examples": [-1, "x"],
    "rivals": [["worst"], ["random", "random"]],
    "rival_draws": [0, -1, "x", None],
}

BAD_IN_RECIPE: dict[str, list[Any]] = {
    "epochs": [-1, 1.5, "x"],
    "batch_size": [0, 4096],
    "loss": ["madri", "rslad", "ard"],
    "beta": [-1],
    "distillation": [{}, {"weight": 0}, {"temperature": 0}, 3],
    "label_smoothing": [1, -0.1],
    "replays": [0, {"+": {"loss": "trades"}, "value": 2}],
    "clean_epochs": [-1, 1],
    "optimizer": ["adam"],
    "lr": [0, float("nan")],
    "momentum": [1, -1],
    "nesterov": ["perhaps", {"+": {"momentum": 0}, "value": True}],
    "weight_decay": [-1],
    "no_decay_norm_bias": ["perhaps"],
    "schedule": ["cosin"],
    "milestones": [{"+": {"schedule": "step"}, "value": [500]}, 3],
    "gamma": [0],
    "warmup_epochs": [9],
    "warmup_lr": [-1],
    "min_lr": [9],
    "schedule_unit": ["batch"],
    "grad_clip": [0],
    "averaging": [0, 1],
    "precision": ["16"],
    "accelerator": ["abacus"],
    "devices": [0, "x"],
    "strategy": ["dp"],
    "channels_last": ["perhaps"],
    "augment": [["crp"], ["resized-crop"], "crop"],
    "cutmix_probability": [2],
    "attack": [{"stepz": 1}, 3],
    "validation_attack": ["pdg5", {"name": "pgd", "stepz": 5}, {"steps": 5}, 5],
    "validation_limit": [0],
    "keep": ["first"],
    "patience": [0, 2],
    "checkpoint_steps": [0],
}

BAD_IN_ATTACK: dict[str, list[Any]] = {
    "steps": [0],
    "step_size": [0, "x"],
    "random_start": ["perhaps"],
    "bn_mode": ["test"],
    "fold": ["perhaps"],
    "compile": ["perhaps"],
    "cuda_graph": ["perhaps", {"+": {"steps": 2}, "value": True}],
}

RECIPES = ("evaluator.train", "final.train", "strategy.supernet")


def cases(bad: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(key, value) for key, values in bad.items() for value in values]


def changed(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and "+" in value:
        return {**settings, **value["+"], key: value["value"]}
    return {**settings, key: value}


def refused(file: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``run`` and ``nni-config`` say, having done nothing."""
    said = []
    for verb in ("run", "nni-config"):
        assert main([verb, file, "--out", verb]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not Path(verb).exists()  # not one trial was started
        said.append(error)
    assert said[0] == said[1]
    return said[0]


def section(file: str, where: str, settings: Any) -> str:
    """The file with another section, such as ``final.train``."""
    path = Path(file)
    # Through JSON: sections that share settings are aliases in YAML, and one object then.
    value = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    *parents, last = where.split(".")
    inner = value
    for parent in parents:
        inner = inner[parent]
    inner[last] = settings(inner.get(last)) if callable(settings) else settings
    path.write_text(yaml.safe_dump(value))
    return file


def mixed(old: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    if "name" in change and change["name"] != old["name"]:
        return change  # a part's settings are its own
    return {**old, **change}


def test_no_key_is_forgotten() -> None:
    for bad, cls in (
        (BAD_IN_FINAL, Final),
        (BAD_IN_RECIPE, Recipe),
        (BAD_IN_ATTACK, TrainAttack),
    ):
        assert set(bad) == {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize(("key", "value"), cases(BAD_IN_FINAL))
def test_final(
    key: str, value: Any, experiment_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = section(experiment_file(), "final", lambda final: changed(final, key, value))
    assert f"final.{key}" in refused(file, capsys)


@pytest.mark.parametrize("where", RECIPES)
@pytest.mark.parametrize(("key", "value"), cases(BAD_IN_RECIPE))
def test_recipes(
    where: str, key: str, value: Any, experiment_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = section(experiment_file(), where, lambda recipe: changed(recipe, key, value))
    said = refused(file, capsys)
    assert (
        f"{where}.{key}" in said
        or ("teacher" in said and where in said)
        or ("unknown key" in said and where in said)
    )
    for other in RECIPES:
        assert other == where or other not in said


@pytest.mark.parametrize("where", RECIPES)
@pytest.mark.parametrize(("key", "value"), cases(BAD_IN_ATTACK))
def test_attacks_of_recipes(
    where: str, key: str, value: Any, experiment_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = section(experiment_file(), f"{where}.attack", changed({"steps": 3}, key, value))
    assert f"{where}.attack.{key}" in refused(file, capsys)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"final.train": {"loss": "rslad"}}, "final.train.loss: 'rslad' is not allowed without"),
        ({"final.train": {"distillation": {}}}, "final.train.distillation is not allowed without"),
        ({"evaluator.train": {"loss": "rslad"}}, "task.teacher is missing; evaluator.train needs"),
        (
            {"strategy": {"supernet": None}, "evaluator.train": {"attack": {"compile": True}}},
            "evaluator.train.attack.compile: true is not allowed for a supernet",
        ),
        (
            {"task": {"teacher": {"architecture": "wrn-28-10", "train": {"lr": 0}}}},
            "task.teacher.train.lr: 0",
        ),
        (
            {"task": {"teacher": {"architecture": "wrn-28-10", "train": {"loss": "ard"}}}},
            "task.teacher.train.loss: a teacher has no teacher to learn from",
        ),
        *(
            (
                {
                    "task": {"teacher": {"architecture": "wrn-28-10", "train": {"epochs": 1}}},
                    "strategy": {"name": "cross-layer-distillation"},
                    where: {"replays": 2, "attack": {"steps": 1}},
                },
                f"{where}.replays: 2 is not allowed with strategy 'cross-layer-distillation'",
            )
            for where in ("evaluator.train", "final.train")
        ),
        ({"task": {"validation": 0}}, "no search-validation pictures"),
        ({"evaluator": {"score_limit": 0}}, "evaluator.score_limit: 0 is not allowed"),
        ({"evaluator": {"score_limit": "x"}}, "evaluator.score_limit: 'x' is not allowed"),
        ({"evaluator": {"recalibrate_batches": -1}}, "evaluator.recalibrate_batches: -1 is not"),
        ({"evaluator": {"strengths": [0.1, 2]}}, "evaluator.strengths: 2.0 is not allowed"),
        ({"evaluator": {"strengths": ["x"]}}, "evaluator.strengths: 'x' is not allowed"),
        (
            {"evaluator": {"strengths": [0.1, 0.2], "strength_weights": [1]}},
            "evaluator.strength_weights: 1 for 2 strengths",
        ),
        (
            {"evaluator": {"strengths": [0.1], "strength_weights": [-1]}},
            "evaluator.strength_weights: -1 is not allowed",
        ),
        ({"evaluator": {"attacks": ["pgd3", "pgd3"]}}, "evaluator.attacks: two attacks are called"),
    ],
)
def test_what_does_not_go_together(
    changes: dict[str, Any],
    says: str,
    experiment_file: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = experiment_file()
    for where, change in changes.items():
        section(file, where, lambda old, change=change: mixed(old, change))
    assert says in refused(file, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("where", RECIPES)
def test_devices_that_are_not_there(
    where: str, experiment_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, key in (
        ({"accelerator": "gpu"}, "accelerator: 'gpu'"),
        ({"attack": {"steps": 5, "cuda_graph": True}}, "attack.cuda_graph: true"),
    ):
        file = section(experiment_file(), where, lambda old, new=changes: {**old, **new})
        assert f"{where}.{key} is not allowed; this machine has no GPU" in refused(file, capsys)


def test_final_phase_of_an_evaluator_that_trains_nothing(
    experiment_file: Write, lookup: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment_file(**{**lookup, "final": {}, "nni": {"engine": "sequential", "trials": 2}})
    assert "final is not allowed with evaluator 'tabular'" in refused(file, capsys)


def test_clean_final_networks(experiment_file: Write, tmp_path: Path) -> None:
    """``attacks: [clean]`` measures clean accuracy only, as it does for candidates."""
    file = section(experiment_file(), "final", lambda old: {**old, "attacks": ["clean"]})
    run = run_experiment(file, out=str(tmp_path / "run"), report=lambda line: None)
    (best, *_) = read_json(run / "final.json")["networks"]
    assert best["metrics"]["default"] == best["metrics"]["clean"]
    assert best["examples"] == []
