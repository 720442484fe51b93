"""Experiment files: every mistake is one sentence, told before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from nni_robust.errors import UserError
from nni_robust.experiments import load_experiment, run_experiment, shipped


def write(folder: Path, **sections: object) -> str:
    path = folder / "mine.yml"
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def test_everything_has_a_default(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path))
    assert experiment.name == "mine"
    assert experiment.space.name == "robnet"
    assert experiment.strategy.name == "robust-one-shot"
    assert experiment.task.dataset == "digits"


@pytest.mark.parametrize("name", shipped())
def test_shipped_files_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name)
    path = tmp_path / "again.yml"
    path.write_text(yaml.safe_dump(experiment.as_mapping()))
    assert load_experiment(str(path)) == experiment


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"taks": {}}, r"unknown key 'taks' in the experiment; did you mean 'task'"),
        ({"task": {"datset": "x"}}, r"unknown key 'datset' in task; did you mean 'dataset'"),
        ({"space": "robnett"}, r"unknown search space 'robnett'; did you mean 'robnet'"),
        ({"space": {"cels": 3}}, r"unknown key 'cels' in space 'robnet'; did you mean 'cells'"),
        ({"space": {"num_classes": 3}}, r"unknown key 'num_classes' in space"),
        ({"space": 5}, r"space: expected a name or a mapping"),
        ({"strategy": {"candidate": 3}}, r"unknown key 'candidate' in strategy.*'candidates'"),
        ({"evaluator": {"store": "/"}}, r"unknown key 'store' in evaluator"),
        ({"evaluator": {"name": 3}}, r"evaluator\.name: 3 is not allowed"),
        (
            {"strategy": {"name": "random", "cands": 3}},
            r"unknown key 'cands' in strategy 'random' \(allowed: name, dedup, seed\)",
        ),
        (
            {"strategy": {"name": "regularized-evolution", "population": 3}},
            r"unknown key 'population' .*; did you mean 'population_size'",
        ),
        ({"final": {"rivals": ["best"]}}, r"final\.rivals\.0: 'best' is not allowed"),
        (
            {"final": {"corruptions": ["fogg"]}},
            r"final\.corruptions: unknown 'fogg'; did you mean 'fog'",
        ),
        ({"nni": {"port": 0}}, r"nni\.port: 0 is not allowed; 1 to 65535"),
        ({"nni": {"concurrency": 0}}, r"nni\.concurrency: 0"),
        ({"nni": {"engine": "cloud"}}, r"nni\.engine: 'cloud' is not allowed"),
        ({"nni": {"trials": 0}}, r"nni\.trials: 0"),
        ({"nni": {"log": ["tensorbord"]}}, r"nni\.log\.0: 'tensorbord' is not allowed"),
        (
            {"nni": {"log": ["mlflow"], "engine": "sequential"}},
            r"nni\.log is not allowed with engine 'sequential'",
        ),
        ({"seed": -1}, r"seed: -1 is not allowed"),
        ({"seed": "x"}, r"seed: 'x' is not allowed"),
        ({"task": {"threat": {"eps": 2}}}, r"threat\.eps: 2.* is not allowed"),
    ],
)
def test_mistakes(sections: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_experiment(write(tmp_path, **sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/evil", "a/b", "a/", r"a\b", "", ".", "..", " a", "a\nb", "x" * 201, None],
)
def test_a_name_is_a_plain_folder_name(
    name: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    for run in (load_experiment, run_experiment):
        with pytest.raises(UserError, match=r"^name: .* is not allowed; a plain folder name"):
            run(write(inner, name=name))
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "mine.yml"]
    assert load_experiment(write(inner, name="my search é-2.1")).name == "my search é-2.1"
    assert load_experiment(write(inner, name=2024)).name == "2024"


def test_a_change_of_one_section_changes_no_other() -> None:
    """YAML's aliases share settings between sections; a change is of the named one only."""
    plain, changed = (
        load_experiment("quickstart", changes).as_mapping()
        for changes in ([], ["strategy.supernet.attack.steps=9"])
    )
    assert changed["strategy"]["supernet"]["attack"]["steps"] == 9
    assert changed["evaluator"] == plain["evaluator"]
    assert changed["final"] == plain["final"]


def test_unknown_name_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no experiment 'quikstart'; did you mean 'quickstart'"):
        load_experiment("quikstart")
    with pytest.raises(UserError, match="no file"):
        load_experiment(str(tmp_path / "none.yml"))


def test_overrides(tmp_path: Path) -> None:
    changed = load_experiment(
        write(tmp_path, strategy="robust-one-shot"),
        ["strategy.candidates=3", "task.threat.eps=4/255", "final=null", "seed=7"],
    )
    assert changed.strategy.arguments == {"candidates": 3}
    assert changed.task.threat.eps == 4 / 255
    assert changed.final is None
    assert changed.seed == 7
    for wrong in ("strategy.candidates", "=3", "name.x=1", "seed=["):
        with pytest.raises(UserError, match="--set"):
            load_experiment(write(tmp_path, name="n"), [wrong])


def test_relative_data_folder_means_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    task = load_experiment(write(tmp_path, task={"root": "pictures"})).task
    assert task.root == str(tmp_path / "pictures")


def test_a_task_may_be_named_and_changed(tmp_path: Path) -> None:
    path = tmp_path / "named.yml"
    path.write_text("task: cifar10/wrn-28-10/pgd20\n")
    named = load_experiment(str(path)).task
    assert named.dataset == "cifar10"
    assert named.attack == "pgd20"
    assert named.teacher is not None
    assert named.budget is not None
    changed = load_experiment(str(path), ["task.train_limit=100"]).task
    assert changed == dataclasses.replace(named, train_limit=100)


def test_a_teachers_paths_mean_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "taught.yml"
    path.write_text("task: {teacher: {architecture: wrn-28-10, weights: my/teacher.safetensors}}")
    teacher = load_experiment(str(path)).task.teacher
    assert teacher is not None
    assert teacher.weights == str(tmp_path / "my" / "teacher.safetensors")


def test_logs_reach_the_trials_as_a_variable(tmp_path: Path) -> None:
    from nni_robust.experiments._trials import trial_environment
    from nni_robust.trial import LOG

    experiment = load_experiment(write(tmp_path, nni={"log": ["tensorboard", "mlflow"]}))
    assert trial_environment(experiment)[LOG] == "tensorboard,mlflow"
    assert LOG not in trial_environment(load_experiment(write(tmp_path)))
