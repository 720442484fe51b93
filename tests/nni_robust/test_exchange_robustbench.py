"""RobustBench: an entry in its form from results that suffice, and its networks in ``evaluate``."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nni_robust.architecture import Architecture
from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.exchange import Trained, leaderboard_entry

#: Fields of an entry in RobustBench's repository (model_info/cifar10/Linf/*.json, May 2023) and
#: the kind of their values.
FIELDS = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": (bool, str),
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
}
ARCHITECTURE = Architecture("mine", "baseline", {}, {})
EVALUATION: dict[str, Any] = {
    "dataset": "cifar10",
    "split": "test",
    "pictures": 10_000,
    "threat": {"norm": "linf", "eps": 8 / 255},
    "metrics": {"clean": 0.9158, "pgd20@8/255": 0.7, "autoattack@8/255": 0.65791},
    "flags": [],
}
TRAINING = {"data": {"name": "cifar10"}, "teacher": None}


def test_an_entry_has_the_fields_of_the_leaderboard() -> None:
    place, entry = leaderboard_entry(Trained(ARCHITECTURE, TRAINING, (EVALUATION,)))
    assert place == "model_info/cifar10/Linf"
    assert set(entry) - set(FIELDS) == {"footnote"}
    for key, kind in FIELDS.items():
        assert isinstance(entry[key], kind), key  # type: ignore[arg-type]
    assert (entry["eps"], entry["clean_acc"], entry["autoattack_acc"]) == (
        "8/255",
        "91.58",
        "65.79",
    )
    assert entry["additional_data"] is False
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize(
    "training", [None, {"data": {"name": "svhn"}}, {**TRAINING, "teacher": "robustbench:A"}]
)
def test_what_was_trained_on_is_not_guessed(training: dict[str, Any] | None) -> None:
    _, entry = leaderboard_entry(Trained(ARCHITECTURE, training, (EVALUATION,)))
    assert entry["additional_data"] == "FILL IN"


def test_l2_and_flags() -> None:
    l2 = {
        **EVALUATION,
        "threat": {"norm": "l2", "eps": 0.5},
        "metrics": {"clean": 0.9, "autoattack@0.5": 0.7},
        "flags": ["softmax-output: …"],
    }
    place, entry = leaderboard_entry(Trained(ARCHITECTURE, TRAINING, (EVALUATION, l2)))
    assert place == "model_info/cifar10/L2"
    assert entry["eps"] == "0.5"
    assert entry["unreliable"] is True


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metrics": {"clean": 0.9, "pgd20@8/255": 0.7}}, "needs AutoAttack's accuracy"),
        ({"metrics": {"clean": 0.9, "autoattack@4/255": 0.7}}, "needs AutoAttack's accuracy"),
        ({"metrics": {"clean": 0.9, "autoattack-light@8/255": 0.7}}, "needs AutoAttack's"),
        ({"dataset": "digits"}, "pictures of 'digits' are not allowed"),
        ({"split": "validation"}, "validation pictures"),
        ({"pictures": 1000}, "1000 pictures are not allowed; the leaderboard counts 10,000"),
        ({"pictures": None}, "0 pictures are not allowed"),
    ],
)
def test_less_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        leaderboard_entry(Trained(ARCHITECTURE, TRAINING, ({**EVALUATION, **change},)))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A package called robustbench with one network, which takes pictures of any size."""
    asked: list[dict[str, Any]] = []

    def load_model(model_name: str, **settings: Any) -> nn.Module:
        asked.append({"name": model_name, **settings})
        if model_name != "Known2020":
            raise KeyError(model_name)
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))

    utils = types.ModuleType("robustbench.utils")
    vars(utils)["load_model"] = load_model
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    return asked


EVALUATE = ["evaluate", "--attacks", "fgsm", "--eps", "0.1", "--limit", "50", "--json"]


def test_evaluate_takes_a_network_of_robustbench(
    package: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    from nni_robust.data import load_dataset

    assert main([*EVALUATE, "robustbench:Known2020"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["architecture"] == "robustbench:Known2020"
    assert answer["trained"] is True
    x, y = next(iter(load_dataset("digits", test=True).test.head(50).batches(50)))
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    assert answer["metrics"]["clean"] == (network(x).argmax(1) == y).double().mean().item()
    assert package[0]["dataset"] == "cifar10"


def test_refusals(
    package: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert main([*EVALUATE, "robustbench:Nobody"]) == 2
    assert "network 'robustbench:Nobody': RobustBench knows no" in capsys.readouterr().err
    weights = str(tmp_path / "w.safetensors")
    assert main([*EVALUATE, "robustbench:Known2020", "--weights", weights]) == 2
    assert "brings its own" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    assert main([*EVALUATE, "robustbench:Known2020"]) == 2
    assert "needs RobustBench: pip install" in capsys.readouterr().err
