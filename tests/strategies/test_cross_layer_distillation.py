"""Cross-layer distillation end to end: teacher, search, student, on several spaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import SimplifiedModelSpace

from nni_robust.errors import UserError
from nni_robust.evaluators import AdversarialTraining
from nni_robust.search_spaces import BaselineSpace, InvertedResidualSpace
from nni_robust.store import Store
from nni_robust.strategies import CrossLayerDistillation

TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 48,
    "lr": 0.05,
    "loss": "clean",
    "validation_attack": None,
}
TEACHER: dict[str, Any] = {"architecture": "wrn-16-1", "train": TRAIN}
TASK: dict[str, Any] = {
    "threat": {"eps": 0.1},
    "train_limit": 96,
    "validation_limit": 32,
    "teacher": TEACHER,
}
SEARCH: dict[str, Any] = {
    "weights": {"epochs": 1, "batch_size": 24, "lr": 0.05},
    "maps": {"size": 4},
}
STAGES = [{"blocks": 1, "widths": [8, 4]}, {"blocks": 1, "widths": [8, 6, 4], "stride": 2}]


def space() -> Any:
    return InvertedResidualSpace(preset=None, stages=STAGES, stem_channels=4, stem_stride=1)


def evaluator(folder: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "task": TASK,
        "train": TRAIN,
        "attacks": ["fgsm"],
        "store": str(folder / "store"),
    }
    return AdversarialTraining(**{**arguments, **changes})


def run(folder: Path, own: Any = None, scorer: Any = None, **settings: Any) -> Any:
    strategy = CrossLayerDistillation(**{"search": SEARCH, **settings})
    engine = SequentialExecutionEngine()
    model_space = SimplifiedModelSpace.from_model(own or space(), scorer or evaluator(folder))
    strategy(model_space, engine)
    return strategy, list(engine.list_models())


def test_teacher_search_student(tmp_path: Path) -> None:
    strategy, models = run(tmp_path)
    assert [m.evaluator.phase for m in models] == ["teacher", "search", "candidate"]
    assert len(models) == strategy.trials
    teacher, search, student = models
    store = Store(tmp_path / "store")
    record = store.result(search.evaluator.key(search))
    assert record is not None
    assert student.sample == record["search"]["sample"]
    assert student.evaluator.teacher == teacher.evaluator.key(teacher)
    pairs = [[t["student"], t["tutor"], t["teacher"]] for t in record["search"]["tutors"]]
    assert student.evaluator.tutors["pairs"] == pairs
    assert strategy.final_settings()["tutors"]["pairs"] == pairs
    strategy.export(tmp_path)
    exported = json.loads((tmp_path / "tutors.json").read_text())
    assert exported["mapping"] == "searched"
    assert exported["tutors"] == record["search"]["tutors"]
    assert set(exported["probabilities"]) == set(student.sample)
    lines = (tmp_path / "search_history.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert {"ce", "kl", "attn", "cost", "tau"} <= set(json.loads(lines[0]))
    # Asked again, everything comes from the store.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").glob("*/record.json")}
    run(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store").glob("*/record.json")} == before


def test_mappings_and_widths_share_one_search(tmp_path: Path) -> None:
    samples = {}
    for widths in ("searched", "min", "max", "random"):
        strategy, _ = run(
            tmp_path, scorer=evaluator(tmp_path, train=None), mapping="average", widths=widths
        )
        samples[widths] = strategy.samples[0]
    assert set(samples["min"].values()) == {4}
    assert set(samples["max"].values()) == {8}
    phases = [
        json.loads(path.read_text())["phase"]
        for path in (tmp_path / "store").glob("*/record.json")
        if "phase" in json.loads(path.read_text())
    ]
    assert phases.count("search") == 1
    assert phases.count("teacher") == 1


def test_random_widths_cost_as_much_as_the_searched_ones(tmp_path: Path) -> None:
    strategy, _ = run(tmp_path, scorer=evaluator(tmp_path, train=None), widths="random")
    searched = strategy.found["search"]["sample"]
    with torch.device("meta"):
        cost = space().cost
    rest = [{"stage1/block1/width": a, "stage2/block1/width": b} for a in (8, 4) for b in (8, 6, 4)]
    rest.remove(searched)
    aim = cost(searched, (3, 8, 8)).macs
    best = min(abs(cost(sample, (3, 8, 8)).macs - aim) for sample in rest)
    assert abs(cost(strategy.samples[0], (3, 8, 8)).macs - aim) == best


def test_no_search_where_nothing_is_searched(tmp_path: Path) -> None:
    strategy, models = run(tmp_path, mapping="proportional", widths="min")
    assert [m.evaluator.phase for m in models] == ["teacher", "candidate"]
    assert models[1].evaluator.tutors["mapping"] == "proportional"
    strategy.export(tmp_path)
    exported = json.loads((tmp_path / "tutors.json").read_text())
    assert exported["tutors"][0]["student"] == exported["students"][0]["name"]
    assert exported["tutors"][-1]["tutor"] == exported["layers"][-1]["name"]
    assert not (tmp_path / "search_history.jsonl").exists()
    strategy, models = run(tmp_path, mapping="none", widths="min")
    assert models[1].evaluator.tutors is None


def test_a_space_without_choices_learns_tutors_for_its_network(tmp_path: Path) -> None:
    strategy, models = run(
        tmp_path, BaselineSpace(network="resnet-18"), evaluator(tmp_path, train=None)
    )
    assert [m.evaluator.phase for m in models] == ["teacher", "search", "candidate"]
    assert len(strategy.found["search"]["tutors"]) == 17


def test_two_teachers_teach_together(tmp_path: Path) -> None:
    second = {**TEACHER, "seed": 1}
    strategy, models = run(tmp_path, teachers=[TEACHER, second])
    assert [m.evaluator.phase for m in models] == ["teacher", "teacher", "search", "candidate"]
    assert {layer["teacher"] for layer in strategy.found["search"]["layers"]} == {0, 1}
    assert len(models[-1].evaluator.tutors["more_teachers"]) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mapping": "serched"}, "did you mean 'searched'"),
        ({"widths": "medium"}, "strategy.widths: 'medium'"),
        ({"rivals": ["searched"]}, "names an architecture twice"),
        ({"search": {"gama": 1}}, "did you mean 'gamma'"),
        ({"tutors": {"gama": 1}}, "gama"),
        ({"tutors": {"pairs": []}}, "follows from the strategy"),
        ({"draws": 0}, "strategy.draws: 0"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        CrossLayerDistillation(**settings)


def test_a_teacher_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set task\.teacher"):
        run(tmp_path, scorer=evaluator(tmp_path, task={**TASK, "teacher": None}))


def test_words_have_no_smallest_value(tmp_path: Path) -> None:
    from nni_robust.search_spaces import RobNetSpace

    with pytest.raises(UserError, match="is not one of numbers"):
        run(tmp_path, RobNetSpace(init_channels=2, cells=3), mapping="last", widths="min")
