"""The flags themselves: of trainings, merged, explained, and never missing."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.curves import Curve, eps_curve, steps_curve
from nni_robust.evaluation import Evaluation, evaluate
from nni_robust.reliability import CHECKS, Check, Reliability, check_training
from nni_robust.transfer import transfer_table

EPS = 0.08
N = 160
Flags = Callable[..., set[str]]


def epochs(*pairs: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    return [{"train_robust": one, "val_robust": many} for one, many in pairs]


@pytest.mark.parametrize(
    ("history", "status"),
    [
        (epochs((0.3, 0.3), (0.4, 0.38), (0.8, 0.02)), "failed"),
        (epochs((0.3, 0.3), (0.8, 0.02), (0.4, 0.38)), "passed"),  # it recovered
        (epochs((0.9, 0.01)), "failed"),  # from the first epoch on
        (epochs((0.4, 0.45), (0.7, 0.5), (0.9, 0.42)), "passed"),  # slow robust overfitting
        (epochs((0.4, 0.4), (0.1, 0.1)), "passed"),  # nothing was learned: figures are right
        (epochs((0.4, None)), "not run"),
        ([], "not run"),
    ],
)
def test_collapse_of_a_training(history: Any, status: str) -> None:
    assert check_training(history, 10).status == status


def test_the_page_explains_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted([*rows, "training-collapse"]) == sorted(CHECKS)
    assert "`training-collapse` reads" in page


def test_the_example_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("UNRELIABLE: softmax-output: the network returns probabilities")


def test_no_result_without_flags(robust: nn.Module, digits: Any) -> None:
    found = evaluate(robust, digits, "pgd2")
    with pytest.raises(TypeError):
        Evaluation(found.clean_correct, found.attacks, 0.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="needs its Reliability"):
        Evaluation(found.clean_correct, found.attacks, 0.0, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dynamic"):
        Reliability(tuple(c for c in found.reliability.checks if c.name != "dynamic"))
    with pytest.raises(ValueError, match="needs a reason"):
        Check("dynamic", "failed")
    assert [check.name for check in found.reliability.checks] == list(CHECKS)


def test_clean_accuracy_alone_is_not_checked(robust: nn.Module, digits: Any) -> None:
    found = evaluate(robust, digits, ()).reliability
    assert {check.status for check in found.checks} == {"not run"}
    assert found.reliable


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Noisy(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_do_not_matter(
    batch_size: int, robust: nn.Module, digits: Any, flags: Flags
) -> None:
    found = evaluate(robust, digits, "pgd3", batch_size=batch_size).reliability
    assert (found.reasons, found.pictures) == ([], N // 16)
    assert flags(Noisy(robust), digits, "pgd3", batch_size=batch_size) == {"randomised"}


def test_merged_results(robust: nn.Module, digits: Any) -> None:
    sound = evaluate(robust, digits, "pgd3").reliability
    broken = evaluate(Noisy(robust), digits, "pgd3").reliability
    for merged in (sound.merged(broken), broken.merged(sound)):
        assert [check.name for check in merged.failed] == ["randomised"]
        assert merged["zero-gradient"].status == "passed"
    curve = eps_curve(robust, digits, (0.02, EPS), "pgd3").reliability
    for merged in (sound.merged(curve), curve.merged(sound)):
        told = merged["rises-with-eps"]  # the score's is "no attack ran twice", below a curve
        assert (told.status, told.reason) == (
            "not run",
            "it cannot fail here: what breaks at one strength counts as broken above it",
        )
    plain = broken.as_dict()
    assert plain["reliable"] is False
    assert plain["unreliable"] == broken.reasons
    assert plain["checks"]["randomised"]["status"] == "failed"


# --- no accuracy without flags -------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
#: What a class of measured accuracies may call them.
ACCURACIES = re.compile(r"(\w+_)?(accuracy|accuracies)|clean|robust|worst|average|metrics")
#: Classes with such a name that are no results: why.
NO_RESULTS = {
    "Outcome": "what the checks themselves are given",
    "AdversarialExamples": "clean pictures",
    "Examples": "clean pictures, for drawing",
    "EpochRecord": "a point of a training's curve",
    "Rslad": "a loss",
    "SpectrumObjective": "weights of an objective",
    "StudyRow": "a row of statistics over records, which have flags",
    "Bucket": "a row of statistics over records, which have flags",
    "Candidates": "points of a figure, drawn from records",
    "_rl_settings.Score": "a reward from a trial's record, which has flags",
    "LinearProbe": "a classifier of features, in an analysis",
}


def classes() -> dict[str, type]:
    """Public dataclasses of the core and the spokes, by their name."""
    found: dict[str, type] = {}
    for folder in ("nni_robust", "search_spaces", "strategies", "evaluators", "experiments"):
        files = (ROOT / folder).glob("**/*.py" if folder == "nni_robust" else "*.py")
        for file in sorted(files):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if folder == "nni_robust" else ("nni_robust", *parts))
            if parts[-1] in ("__main__", "__init__"):
                continue
            for cls in vars(importlib.import_module(name)).values():
                if inspect.isclass(cls) and cls.__module__ == name and is_dataclass(cls):
                    found[f"{name}.{cls.__name__}"] = cls
    return found


def has_accuracies(cls: type) -> bool:
    names = [f.name for f in dataclasses.fields(cls)]
    names += [key for key, value in vars(cls).items() if isinstance(value, property)]
    return any(ACCURACIES.fullmatch(name) for name in names)


def results() -> dict[str, type]:
    return {
        name: cls
        for name, cls in classes().items()
        if not cls.__name__.startswith("_")
        and not any(name.endswith(f".{other}") for other in NO_RESULTS)
        and has_accuracies(cls)
    }


def test_no_public_result_with_an_accuracy_is_made_without_flags(robust: nn.Module) -> None:
    told = Reliability.unknown("why")
    right = torch.ones(3, dtype=torch.bool)
    points = ((0.1, 0.5),)
    row = {"a": {"b": 0.5}}
    whole: dict[str, dict[str, Any]] = {
        "AttackResult": {"attack": attack("fgsm"), "correct": right, "seconds": 0.0},
        "Evaluation": {"clean_correct": right, "attacks": {}, "seconds": 0.0},
        "Curve": {"points": points},
        "Spectrum": {
            "accuracy": {0.1: 0.5},
            "clean": 1.0,
            "losses": {0.1: 1.0},
            "keys": {0.1: "pgd20"},
            "weights": {0.1: 1.0},
            "n": 1,
            "passes": 0,
            "forwards": 0,
            "seconds": 0.0,
        },
        "TransferTable": {"attack": "pgd20", "n": 1, "clean": {"a": 1.0}, "accuracy": row},
        "CorruptionResult": {
            "clean": 1.0,
            "accuracy": {"fog": {1: 0.5}},
            "n": 1,
            "scale": "cifar",
            "seed": 0,
            "seconds": 0.0,
        },
        "Score": {"metrics": {}, "more": {}, "seconds": 0.0},
    }
    found = results()
    assert sorted(cls.__name__ for cls in found.values()) == sorted(whole)
    for cls in found.values():
        arguments = whole[cls.__name__]
        flags = [f.name for f in dataclasses.fields(cls) if "Reliability" in str(f.type)]
        assert flags, cls
        per = {"sources": {"b": told}, "targets": {"a": told}}
        good = {name: per.get(name, told) for name in flags}
        made = cls(**arguments, **good)
        with pytest.raises(TypeError):
            cls(**arguments)
        for name in flags:
            for bad in (None, {"reliable": True}, {"a": None, "b": None}):
                with pytest.raises(TypeError):
                    cls(**arguments, **{**good, name: bad})
                with pytest.raises(TypeError):
                    dataclasses.replace(made, **{name: bad})


def test_curves_have_flags(robust: nn.Module, digits: Any) -> None:
    for measure, values in ((eps_curve, [0, 0.04, 0.08]), (steps_curve, [1, 4])):
        sound: Any = measure(robust, digits, values)  # type: ignore[operator]
        assert isinstance(sound, Curve)
        assert sound.reliability.reasons == []
        assert sound.reliability["outside-ball"].status == "passed"
        assert sound.reliability["rises-with-steps"].status == "not run"
        assert [x for x, _ in sound] == values
        assert sound.accuracy == dict(list(sound))
        assert sound[-1] == sound[len(values) - 1]
        noisy: Any = measure(Noisy(robust), digits, values)  # type: ignore[operator]
        assert [check.name for check in noisy.reliability.failed] == ["randomised"]


def test_transfer_tables_have_flags(robust: nn.Module, digits: Any) -> None:
    """Of each source's attack, and of each target's answers."""
    networks = {"sound": robust, "noisy": Noisy(robust)}
    table = transfer_table(networks, networks, digits, "pgd3", threat={"eps": EPS})
    assert table.reliability["randomised"].status == "failed"
    assert [r.split(": ")[:2] for r in table.unreliable] == [
        ["randomised", "source 'noisy'"],
        ["randomised", "target 'noisy'"],
    ]
    assert table.sources["sound"]["outside-ball"].figures["pictures"] > 0
    assert table.sources["sound"]["zero-gradient"].status == "passed"
    own = table.accuracy["sound"]["sound"] - table.accuracy["sound"]["noisy"]
    assert table.targets["sound"]["black-box-wins"].figures["gap"] == pytest.approx(own)
    one = transfer_table({"sound": robust}, networks, digits, "pgd3", threat={"eps": EPS})
    assert one.targets["noisy"]["black-box-wins"].status == "not run"


def test_checks_that_are_added_reach_every_attack(robust: nn.Module, digits: Any) -> None:
    found = evaluate(robust, digits, ["fgsm", "pgd2"])
    collapse = check_training(epochs((0.9, 0.01)), 10)
    more = found.with_checks([collapse])
    assert [check.name for check in more.reliability.failed] == ["training-collapse"]
    assert all(one.reliability == more.reliability for one in more.attacks.values())
    assert more.metrics() == found.metrics()
