"""The evaluator outside and inside of NNI's format: metrics, store, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nni.nas.space import SimplifiedModelSpace

from nni_robust import evaluate
from nni_robust.cost import measure_cost
from nni_robust.data import load_task
from nni_robust.errors import UserError
from nni_robust.evaluators import AdversarialTraining
from nni_robust.search_spaces import RobNet, RobNetSpace
from nni_robust.task import Task
from nni_robust.threat import ThreatModel

TASK: dict[str, Any] = {
    "threat": {"eps": 0.1},
    "train_limit": 96,
    "validation_limit": 48,
    "test_limit": 24,
}
TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 48,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
}


def network() -> RobNet:
    torch.manual_seed(0)
    return RobNet("33123210120232", 10, 2, 3)


def test_metrics_are_those_of_an_independent_measurement() -> None:
    evaluator = AdversarialTraining(task=TASK, train=None, attacks=["fgsm", "pgd5"])
    net = network()
    metrics = evaluator.evaluate(net)["metrics"]
    task = Task(train_limit=96, validation_limit=48, threat=ThreatModel(eps=0.1))
    other = evaluate(net, load_task(task).validation, ["fgsm", "pgd5"], threat=task.threat)
    assert {k: metrics[k] for k in other.metrics()} == other.metrics()
    assert metrics["default"] == min(metrics["fgsm@0.1"], metrics["pgd5@0.1"])
    cost = measure_cost(net, (3, 8, 8))
    assert (metrics["params"], metrics["macs"]) == (cost.params, cost.macs)
    assert all(isinstance(v, (int, float)) for v in metrics.values())


def test_training_changes_the_network_and_reports_its_curve() -> None:
    net = network()
    before = net.classifier.weight.clone()
    record = AdversarialTraining(task=TASK, train=TRAIN, attacks=["fgsm"]).evaluate(net)
    assert not torch.equal(before, net.classifier.weight)
    assert [h["epoch"] for h in record["history"]] == [1]


def test_the_best_epoch_is_scored_and_checked() -> None:
    changes = {"epochs": 6, "lr": 0.1, "schedule": "constant", "validation_attack": "pgd2"}
    train = {**TRAIN, **changes, "keep": "best"}
    record = AdversarialTraining(task=TASK, train=train, attacks=["pgd2"]).evaluate(network())
    curve = [h["val_robust"] for h in record["history"]]
    kept = record["kept_epoch"]
    assert kept == curve.index(max(curve)) + 1 < 6
    assert record["metrics"]["clean"] == pytest.approx(record["history"][kept - 1]["val_clean"])
    # What came after it is no part of the network that the check speaks of.
    figures = record["reliability"]["checks"]["training-collapse"]["figures"]
    assert figures["val_robust"] == pytest.approx(curve[kept - 1], abs=1e-4)
    assert figures["val_robust"] > curve[-1]


@pytest.mark.parametrize("more", [{}, {"strengths": [0.02, 0.1]}])
def test_the_record_has_the_checks(more: Any) -> None:
    """Of the attacks on the final weights, of all attacks together, and of the training's curve."""

    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x + 0.05 * torch.randn_like(x))

    train = {**TRAIN, "validation_attack": "pgd2"}
    for net, failed in ((network(), set()), (Noisy(), {"randomised"})):
        evaluator = AdversarialTraining(task=TASK, train=train, attacks=["fgsm", "pgd5"], **more)
        flags = evaluator.evaluate(net)["reliability"]
        found = {k for k, c in flags["checks"].items() if c["status"] == "failed"}
        assert found - {"one-answer"} == failed  # after one epoch it may know no more
        assert {reason.split(":")[0] for reason in flags["unreliable"]} == found
        assert flags["checks"]["training-collapse"]["status"] == "passed"
        assert json.loads(json.dumps(flags)) == flags


def frozen(evaluator: Any, code: str = "33123210120232") -> Any:
    space = RobNetSpace(num_classes=10, init_channels=2, cells=3)
    model = SimplifiedModelSpace.from_model(space, evaluator)
    return model.freeze(RobNetSpace.decode(code, cells=3))


def test_the_test_split_stays_shut_in_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from nni_robust.data import DataSplits

    opened = []
    monkeypatch.setattr(DataSplits, "test", property(lambda self: opened.append(self.name)))
    AdversarialTraining(task=TASK, train=TRAIN, attacks=["fgsm"]).evaluate(network())
    assert opened == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"attacks": []}, "at least one attack"),
        ({"split": "train"}, "split: 'train' is not allowed"),
        ({"task": {"dataset": "digits", "treat": 1}}, "did you mean 'threat'"),
        ({"train": {"loss": "maddry"}}, "maddry"),
    ],
)
def test_refusals(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        AdversarialTraining(**arguments)


def test_a_killed_scoring_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of test pictures, the second of which is stopped; the first is not repeated."""
    from nni_robust.attacks.gradient import PGD

    attacked: list[list[int]] = []
    plain = PGD.__call__

    def stopped(self: PGD, model: Any, x: Any, y: Any, **more: Any) -> Any:
        if self.label == "pgd2":  # training's has one step
            attacked.append(more["index"].tolist())
            if len(attacked) == 2:
                raise KeyboardInterrupt
        return plain(self, model, x, y, **more)

    task = {**TASK, "test_limit": 320}

    def scored(store: Path) -> dict[str, Any]:
        evaluator = AdversarialTraining(
            task=task,
            train={**TRAIN, "epochs": 8},
            attacks=["pgd2"],
            split="test",
            store=str(store),
        )
        record: dict[str, Any] = evaluator._execute(frozen(evaluator))
        assert not list(store.rglob("attack-*"))  # no more needed
        return record

    whole = scored(tmp_path / "whole")
    monkeypatch.setattr(PGD, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "stopped")
    assert len(list((tmp_path / "stopped").rglob("attack-*"))) == 1
    found = scored(tmp_path / "stopped")
    assert len(attacked) == 3
    assert attacked[1] == attacked[2] != attacked[0]
    assert found["pictures"] == whole["pictures"] == 320
    assert found["metrics"].keys() == whole["metrics"].keys()
    for key in whole["metrics"].keys() - {"seconds"}:
        assert found["metrics"][key] == whole["metrics"][key]
    assert found["reliability"]["checks"] == whole["reliability"]["checks"]


def test_what_is_measured_of_a_final_network_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second corruption: spectrum, curves and the first are known from then on."""
    from nni_robust.attacks.gradient import PGD
    from nni_robust.corruptions import _evaluate

    attacked: list[str] = []
    shown: list[str] = []
    attack, corrupt = PGD.__call__, _evaluate.corrupt

    def attacking(self: PGD, *args: Any, **more: Any) -> Any:
        attacked.append(self.key)
        return attack(self, *args, **more)

    def corrupting(x: Any, name: str, *args: Any, **more: Any) -> Any:
        shown.append(name)
        if len(shown) == 8:
            raise KeyboardInterrupt
        return corrupt(x, name, *args, **more)

    def scored(store: Path) -> dict[str, Any]:
        evaluator = AdversarialTraining(
            task=TASK,
            train={**TRAIN, "epochs": 8},
            attacks=["pgd20", "pgd3"],
            strengths=[0.005, 0.01],
            split="test",
            store=str(store),
            eps_values=[0, 0.01, 0.1],
            steps=[2, 20],
            corruptions=["fog", "contrast"],
        )
        record: dict[str, Any] = evaluator._execute(frozen(evaluator))
        assert not (store / record["key"] / "evaluation").exists()
        return record

    whole = scored(tmp_path / "whole")
    monkeypatch.setattr(PGD, "__call__", attacking)
    monkeypatch.setattr(_evaluate, "corrupt", corrupting)
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "stopped")
    assert {"pgd20@0.005", "pgd20@0.01", "pgd3@0.1", "pgd2@0.1"} <= set(attacked)
    attacked.clear(), shown.clear()
    found = scored(tmp_path / "stopped")
    assert attacked == []
    assert shown == ["contrast"] * 5
    for record in (whole, found):
        record["metrics"].pop("seconds")
        record["corruptions"].pop("seconds")
        record["corruptions"]["reliability"].pop("seconds")
    for key in ("metrics", "spectrum", "passes", "eps_curve", "steps_curve", "corruptions"):
        assert found[key] == whole[key], key
    assert found["reliability"]["checks"] == whole["reliability"]["checks"]


def test_fsp_is_of_the_weights_before_training(tmp_path: Path) -> None:
    """Of given weights (no training) it is measured; of weights from scratch it means nothing."""
    from nni_robust.analysis import fsp_record
    from nni_robust.training import Recipe

    given = AdversarialTraining(task=TASK, train=None, attacks=["fgsm"], fsp=20)
    net = network()
    found = given.evaluate(net)["fsp"]
    task = Task(train_limit=96, validation_limit=48, threat=ThreatModel(eps=0.1))
    images = load_task(task).validation
    assert found == fsp_record(net, images, Recipe(), task.threat, pictures=20)
    assert len(found["distance"]) == 3
    scratch = AdversarialTraining(task=TASK, train=TRAIN, attacks=["fgsm"], fsp=20)
    assert "fsp" not in scratch.evaluate(network())
    assert scratch.key(frozen(scratch)) != scratch.variant(fsp=None).key(frozen(scratch))
    with pytest.raises(UserError, match=r"evaluator\.fsp: 0"):
        AdversarialTraining(task=TASK, fsp=0)
