"""The evaluator with a teacher, with a task's attack, and over a spectrum of strengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.nas.space import SimplifiedModelSpace, model_context
from safetensors.torch import load_file

from nni_robust import evaluate
from nni_robust.architecture import Architecture, load_architecture
from nni_robust.config import parse
from nni_robust.data import load_task
from nni_robust.errors import UserError
from nni_robust.evaluators import AdversarialTraining
from nni_robust.search_spaces import RobNetSpace, WideResNetSpace
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.store import Store
from nni_robust.task import Task
from nni_robust.teacher import TeacherTraining, teacher_from_store
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, save_weights, train

SPACE: dict[str, Any] = {
    "depths": [2, 1, 1],
    "widths": [2, 2, 1],
    "stem_channels": 4,
    "base_channels": [4, 4, 8],
}
WHOLE = {
    f"stage{i}/{what}": SPACE[f"{what}s"][i - 1] for i in (1, 2, 3) for what in ("depth", "width")
}
SMALLER = {**WHOLE, "stage1/depth": 1, "stage2/width": 1}
TASK: dict[str, Any] = {
    "threat": {"eps": 0.1},
    "train_limit": 96,
    "validation_limit": 24,
    "test_limit": 24,
}
TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 48,
    "lr": 0.02,
    "attack": {"steps": 1},
    "validation_attack": None,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An architecture file of the largest network, with weights."""
    folder = tmp_path_factory.mktemp("teacher")
    shape = (3, 8, 8)
    plain = Architecture("big", "wide-resnet", SPACE, WHOLE, input_shape=shape)
    torch.manual_seed(8)
    save_weights(plain.build(), folder / "big.safetensors")
    dataclasses.replace(plain, weights=folder / "big.safetensors").save(folder / "big.yaml")
    return str(folder / "big.yaml")


def model(evaluator: Any, sample: dict[str, Any] = SMALLER, **space: Any) -> Any:
    whole = SimplifiedModelSpace.from_model(WideResNetSpace(**{**SPACE, **space}), evaluator)
    return whole.freeze(sample)


def evaluator(**settings: Any) -> AdversarialTraining:
    return AdversarialTraining(**{"task": TASK, "train": None, "attacks": ["fgsm"], **settings})


def weights(store: Path, key: str) -> dict[str, torch.Tensor]:
    return load_file(Store(store).folder(key) / "weights.safetensors")


def test_inheriting_is_the_space_s_inherit(file: str, tmp_path: Path) -> None:
    """Without training and recalibration: the teacher's weights, cut to size, to the bit."""
    task = {**TASK, "teacher": {"architecture": file}}
    for options in ({}, {"channels": "first"}):
        made = evaluator(
            task=task,
            store=str(tmp_path),
            inherit="teacher",
            inherit_options=options,
            recalibrate_batches=0,
        )
        record = made._execute(model(made))
        teacher = load_architecture(file).build(pretrained=True)
        expected = WideResNetSpace(**SPACE).inherit(SMALLER, teacher, **options).state_dict()
        found = weights(tmp_path, record["key"])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], t) for name, t in expected.items())
    whole = evaluator(task=task, store=str(tmp_path), inherit="teacher", recalibrate_batches=0)
    record = whole._execute(model(whole, WHOLE))
    data = load_task(Task(**{**TASK, "threat": ThreatModel(eps=0.1)}))
    other = evaluate(teacher, data.validation, ["fgsm"], threat=ThreatModel(eps=0.1))
    assert record["metrics"]["clean"] == other.clean


def test_inherited_statistics_are_made_anew(file: str, tmp_path: Path) -> None:
    task = {**TASK, "teacher": {"architecture": file}}
    made = evaluator(task=task, store=str(tmp_path), inherit="teacher")
    plain = made.variant(recalibrate_batches=0)
    fresh, old = (weights(tmp_path, e._execute(model(e))["key"]) for e in (made, plain))
    moved = {name.rsplit(".")[-1] for name in old if not torch.equal(old[name], fresh[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_teacher_trained_in_the_store_teaches(file: str, tmp_path: Path) -> None:
    """Distillation from the store's teacher, by its key; another teacher is another question."""
    untrained = tmp_path / "plain.yaml"
    architecture = load_architecture(file)
    dataclasses.replace(architecture, weights=None).save(untrained)
    teacher = {"architecture": str(untrained), "train": TRAIN}
    task = {**TASK, "teacher": teacher}
    trial = TeacherTraining(task=task, store=str(tmp_path), attacks=["fgsm"])
    key = trial._execute(model(trial))["key"]
    distilled = {**TRAIN, "distillation": {"weight": 1.0, "temperature": 2}}
    made = evaluator(task=task, store=str(tmp_path), train=distilled, teacher=key)
    record = made._execute(model(made))
    # By hand: the same seed, the same teacher.
    torch.manual_seed(0)
    with model_context(SMALLER):
        student = WideResNetSpace(**SPACE)
    network = teacher_from_store(tmp_path, key, trial.teacher, 10, (3, 8, 8))
    data = load_task(parse(Task, task, "task"))
    recipe = parse(Recipe, distilled, "train")
    threat = ThreatModel(eps=0.1)
    expected = train(student, data, recipe, threat, teacher=network).model.state_dict()
    found = weights(tmp_path, record["key"])
    assert all(torch.equal(found[name], t) for name, t in expected.items())
    alone = made.variant(teacher=None)
    with pytest.raises(UserError, match=r"no weights; give teacher\.weights, or teacher\.train"):
        alone.measure(model(alone), None)
    # The key wins over the teacher's own weights, and nothing loads a teacher that is not needed.
    made.variant(train=TRAIN, teacher="no such key")._execute(model(made))


def test_tutors_are_a_wrapper_of_the_loss(file: str, tmp_path: Path) -> None:
    task = {**TASK, "teacher": {"architecture": file}}
    tutors = {"mapping": "proportional", "gamma": 5.0}
    made = evaluator(task=task, store=str(tmp_path), train=TRAIN, tutors=tutors)
    none = made.variant(tutors=None)
    with_it, without = (weights(tmp_path, e._execute(model(e))["key"]) for e in (made, none))
    assert any(not torch.equal(with_it[name], without[name]) for name in without)
    with pytest.raises(UserError, match=r"evaluator\.tutors: .*'gama'"):
        made.variant(tutors={"gama": 3})


def test_the_task_s_attack_is_the_default() -> None:
    made = evaluator(attacks=None, task={**TASK, "attack": "pgd3"})
    assert made.attacks == ["pgd3"]
    metrics = made.measure(model(made), None)["metrics"]
    assert metrics["default"] == metrics["pgd3@0.1"]
    assert evaluator(attacks=None).attacks == ["pgd20"]
    assert evaluator(attacks=["fgsm"], task={**TASK, "attack": "pgd3"}).attacks == ["fgsm"]
    # Another task's attack takes the place of a default, not of what was asked for.
    assert made.variant(task={**TASK, "attack": "cw4"}).attacks == ["cw4"]
    assert evaluator().variant(task={**TASK, "attack": "cw4"}).attacks == ["fgsm"]


@pytest.mark.parametrize(
    "settings", [{"attacks": ["clean"]}, {"task": {**TASK, "attack": "clean"}}]
)
def test_clean_is_scored_by_clean_accuracy(settings: dict[str, Any]) -> None:
    made = evaluator(**{"attacks": None, **settings})
    metrics = made.measure(model(made), None)["metrics"]
    assert metrics["default"] == metrics["clean"]
    assert not any("@" in name for name in metrics)


def test_a_network_has_as_many_outputs_as_the_task_has_classes(tmp_path: Path) -> None:
    """The digits have ten classes; the space was made for seven."""
    made = evaluator(store=str(tmp_path), train=TRAIN)
    seven, ten = (model(made, num_classes=n) for n in (7, 10))
    found = [weights(tmp_path, made._execute(m)["key"]) for m in (seven, ten)]
    assert found[0]["fc.weight"].shape[0] == 10
    assert all(torch.equal(found[0][name], t) for name, t in found[1].items())


def test_spectrum(tmp_path: Path) -> None:
    strengths = ["2/255", 0.03, 0.1]
    made = evaluator(attacks=["pgd3"], strengths=strengths, strength_weights=[1, 2, 3])
    torch.manual_seed(0)
    record = made.measure(model(made), None)
    torch.manual_seed(0)
    with model_context(SMALLER):
        network = WideResNetSpace(**SPACE)
    data = load_task(parse(Task, TASK, "task"))
    other = evaluate_spectrum(network, data.validation, strengths, "pgd3", weights=[1, 2, 3])
    metrics = record["metrics"]
    assert {k: metrics[k] for k in other.metrics()} == other.metrics()
    average = sum(w * a for w, a in zip([1, 2, 3], other.accuracy.values(), strict=True)) / 6
    assert metrics["default"] == pytest.approx(average)
    assert [eps for eps, _ in record["spectrum"]] == pytest.approx([2 / 255, 0.03, 0.1])
    both = made.variant(attacks=["pgd3", "fgsm"])
    more = both.measure(model(both), None)["metrics"]
    assert more["default"] == metrics["default"]
    assert "fgsm@0.1" in more


def test_every_setting_is_part_of_the_key(file: str) -> None:
    task = {**TASK, "teacher": {"architecture": file}}
    made = evaluator(task=task, inherit="teacher")
    asked = model(made)
    variants = [
        made,
        made.variant(inherit=None),
        made.variant(inherit_options={"channels": "first"}),
        made.variant(teacher="abc"),
        made.variant(train=TRAIN, tutors={"gamma": 3.0}),
        made.variant(train=TRAIN, tutors={"gamma": 4.0}),
        made.variant(strengths=[0.1]),
        made.variant(strengths=[0.1], strength_weights=[2]),
        made.variant(attacks=["clean"]),
    ]
    keys = [variant.key(asked) for variant in variants]
    assert len(set(keys)) == len(keys)
    sent: Any = nni.load(nni.dump(asked))
    assert sent.evaluator.key(sent) == keys[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"inherit": "parent"}, "evaluator.inherit: 'parent' is not allowed; allowed: teacher"),
        ({"inherit": "teacher"}, "task.teacher is missing; evaluator.inherit needs a teacher"),
        ({"tutors": {}}, "evaluator.tutors is not allowed without training"),
        ({"train": {**TRAIN, "loss": "rslad"}}, "evaluator.train needs a teacher"),
        ({"inherit_options": {"a": 1}}, "inherit_options is not allowed without inherit"),
        ({"strength_weights": [1]}, "strength_weights is not allowed without strengths"),
        ({"strengths": [0.1], "attacks": ["clean"]}, "at least one strength and an attack"),
        ({"attacks": ["clean", "fgsm"]}, "'clean' is not allowed beside attacks"),
        ({"attacks": ["pdg20"]}, "did you mean 'pgd"),
    ],
)
def test_refusals(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        evaluator(**settings)


def test_a_space_that_cannot_inherit(file: str) -> None:
    task = {**TASK, "teacher": {"architecture": file}}
    made = evaluator(task=task, inherit="teacher")
    space = RobNetSpace(num_classes=10, init_channels=2, cells=3)
    asked = SimplifiedModelSpace.from_model(space, made).freeze(
        RobNetSpace.decode("33123210120232", cells=3)
    )
    with pytest.raises(UserError, match="is not allowed with space RobNetSpace"):
        made.measure(asked, None)
