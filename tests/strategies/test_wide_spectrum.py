"""The wide-spectrum search end to end, on tiny networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import SimplifiedModelSpace
from safetensors.torch import load_file

from nni_robust.attacks import attack_from_spec
from nni_robust.config import parse
from nni_robust.data import derive_seed, load_task
from nni_robust.errors import UserError
from nni_robust.evaluators import AdversarialTraining
from nni_robust.objective import SpectrumObjective
from nni_robust.predictor import make_encoding
from nni_robust.sampling import draw
from nni_robust.search_spaces import DartsSpace, RobNetSpace
from nni_robust.store import Store, content_key
from nni_robust.strategies import WideSpectrumSearch
from nni_robust.strategies._wide_spectrum_searcher import Searcher, plan_epochs
from nni_robust.strategies._wide_spectrum_settings import SearchSettings, parse_signals
from nni_robust.strategies._wide_spectrum_training import WideSpectrumTraining
from nni_robust.supernet import build_supernet, inherit, set_path
from nni_robust.task import Task
from nni_robust.training import Recipe, recalibrate_bn, train
from nni_robust.training.weights import load_weights

TASK: dict[str, Any] = {"threat": {"eps": 0.1}, "train_limit": 64, "validation_limit": 48}
TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 32,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
}
SEARCH: dict[str, Any] = {
    "epochs": 2,
    "warmup": {"archs": 2},
    "objective": {"strengths": [0.05, 0.1, 0.15], "weights": [1, 2, 3]},
    "measure": {
        "steps": 1,
        "pictures": 24,
        "recalibrate_batches": 1,
        "estimator": {"batches": 2, "gate_every": 2, "gate_pictures": 8},
    },
    "finalists": 2,
}


def evaluator(folder: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "task": TASK,
        "train": None,
        "attacks": ["fgsm"],
        "store": str(folder),
        "recalibrate_batches": 1,
    }
    return AdversarialTraining(**{**arguments, **changes})


def robnet() -> Any:
    return RobNetSpace(num_classes=10, init_channels=2, cells=3)


def darts() -> Any:
    return DartsSpace(num_classes=10, width=4, cells=3)


def strategy(**changes: Any) -> WideSpectrumSearch:
    return WideSpectrumSearch(**{"candidates": 1, "supernet": TRAIN, **SEARCH, **changes})


def search(space: Any, evaluator: Any, strategy: WideSpectrumSearch) -> list[Any]:
    engine = SequentialExecutionEngine()
    strategy(SimplifiedModelSpace.from_model(space, evaluator), engine)
    return list(engine.list_models())


def test_search_then_candidates_that_inherit(tmp_path: Path) -> None:
    """On the paper's cells: a trial that searches, and one for its best architecture."""
    made = strategy()
    models = search(darts(), evaluator(tmp_path), made)
    assert {m.evaluator.phase for m in models} == {"search", "candidate"}
    assert made.trials == len(models) == 2
    (found,) = made.found
    assert [e["phase"] for e in found["search"]["epochs"]] == ["warmup"] * 2 + ["build"] * 2 + [
        "search"
    ] * 2
    finalists = found["search"]["finalists"]
    assert [f["objective"] for f in finalists] == sorted(f["objective"] for f in finalists)
    assert found["search"]["best"] == finalists[0]["sample"]
    # J of the record is the objective of its losses, and the candidate has the supernet's weights.
    objective = SpectrumObjective((0.05, 0.1, 0.15), (1.0, 2.0, 3.0))
    for row in finalists:
        value = float(objective.value(torch.tensor(row["losses"])))
        assert row["objective"] == pytest.approx(value, rel=1e-5)
    candidate = next(m for m in models if m.evaluator.phase == "candidate")
    supernet = build_supernet(darts())
    load_weights(supernet, Store(tmp_path).folder(found["key"]) / "weights.safetensors")
    plain = evaluator(tmp_path, store=None, recalibrate_batches=0)
    network = inherit(supernet, candidate.sample)
    recalibrate_bn(network, load_task(plain.task), batches=1, batch_size=64, seed=0)
    assert candidate.metrics.final == plain.evaluate(network)["metrics"]["default"]


def test_every_signal_and_their_comparison(tmp_path: Path) -> None:
    made = strategy(
        candidates=0, signals=["naive", "estimator", "warm-start"], compare={"candidates": 3}
    )
    models = search(robnet(), evaluator(tmp_path), made)
    phases = [m.evaluator.phase for m in models]
    assert sorted(phases) == ["comparison", "search", "search", "search"]
    made.export(tmp_path)
    exported = json.loads((tmp_path / "wide_spectrum.json").read_text())
    costs = {s["label"]: s["cost"] for s in exported["searches"]}
    # 2 + 2 measured in the search and 2 finalists; 3 strengths of 1 step on 24 pictures, each with
    # a forward pass to judge, and a clean one.
    measured = 6
    assert costs["naive"]["measure_passes"] == pytest.approx(measured * 24 * (3 + 4 / 3))
    # 6 epochs of 2 batches of 32, one attack step and one training step.
    assert costs["naive"]["train_passes"] == 6 * 2 * 32 * 2
    assert all(c["train_passes"] == costs["naive"]["train_passes"] for c in costs.values())
    (estimator,) = [s for s in exported["searches"] if s["label"] == "estimator"]
    assert estimator["signal"]["real"] == [0.05, 0.15]
    assert estimator["signal"]["estimated"] == [0.1]
    assert len(estimator["signal"]["gates"]) == 3  # at measurements 0, 2 and 4 of 6
    rows = {row["label"]: row for row in exported["comparisons"][0]["rows"]}
    assert set(rows) == {"naive", "estimator", "warm-start", "naive, other pictures"}
    assert rows["naive"]["tau"] == pytest.approx(1)
    assert rows["naive"]["passes"] == pytest.approx(3 * 24 * (3 + 4 / 3))
    assert rows["naive, other pictures"]["objective"] != rows["naive"]["objective"]
    # A resumed search finds everything in the store.
    again = strategy(
        candidates=0, signals=["naive", "estimator", "warm-start"], compare={"candidates": 3}
    )
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/record.json")}
    search(robnet(), evaluator(tmp_path), again)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/record.json")} == before
    assert again.found == made.found


@pytest.mark.slow
def test_stability_over_seeds(tmp_path: Path) -> None:
    made = strategy(candidates=0, seeds=2, epochs=1, warmup={"archs": 1, "epochs": 0})
    search(robnet(), evaluator(tmp_path), made)
    made.export(tmp_path)
    exported = json.loads((tmp_path / "wide_spectrum.json").read_text())
    assert [s["seed"] for s in exported["searches"]] == [0, 1]
    row = next(r for r in exported["stability"] if r["result"] == "best")
    samples = [s["best"] for s in exported["searches"]]
    same = sum(samples[0][label] == samples[1][label] for label in samples[0])
    assert row["shared"] == [same]
    assert row["choices"] == 14


# Exact resume


class Killed(Exception):
    pass


def trial(folder: Path, signal: str) -> Any:
    return WideSpectrumTraining(
        task=TASK,
        train=TRAIN,
        search={**SEARCH, "signal": signal, "predictor": {"kind": "lstm", "passes": 2}},
        store=str(folder),
        seed=4,
    )


def outcome(folder: Path, signal: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Record without times, and the supernet's weights."""
    made = trial(folder, signal)
    model = SimplifiedModelSpace.from_model(robnet(), made).random()
    record = made._execute(model)
    weights = load_file(Store(folder).folder(made.key(model)) / "weights.safetensors")
    found = dict(record["search"])
    found["cost"] = {k: v for k, v in found["cost"].items() if "seconds" not in k}
    metrics = {k: v for k, v in record["metrics"].items() if k != "seconds"}
    return {"search": found, "metrics": metrics, "history": record["history"]}, weights


@pytest.mark.parametrize(
    "signal", [pytest.param("estimator", marks=pytest.mark.slow), "warm-start"]
)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: str
) -> None:
    """Killed while measuring, after measuring, inside an epoch, and among the finalists."""
    expected, weights = outcome(tmp_path / "whole", signal)
    measure, calls = Searcher.measure, 0

    def dying(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (2, 5, 8):  # in the build phase, in the search, among the finalists
            raise Killed
        return measure(self, *args)

    save, saved = Searcher.save, 0

    def dying_after(self: Any, path: Path) -> None:
        nonlocal saved
        save(self, path)
        saved += 1
        if saved == 3:
            raise Killed

    monkeypatch.setattr(Searcher, "measure", dying)
    monkeypatch.setattr(Searcher, "save", dying_after)
    deaths = 0
    while True:
        try:
            found, after = outcome(tmp_path / "killed", signal)
            break
        except Killed:
            deaths += 1
    assert deaths == 4
    assert found == expected
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_measuring_does_not_touch_the_supernet(tmp_path: Path) -> None:
    """Buffers of batch norm are bit for bit as before; so are the weights and their gradients."""
    space = robnet()
    mutables = space.simplify()
    supernet = build_supernet(space)
    settings = SearchSettings(**_parsed(SEARCH)).resolved()
    searcher = Searcher(
        settings,
        make_encoding(mutables),
        mutables,
        _task().threat,
        load_task(_task()),
        0,
        32,
    )
    before = {k: t.clone() for k, t in supernet.state_dict().items()}
    searcher.measure(supernet, searcher.paths(0)[0], 0)
    assert all(torch.equal(t, before[k]) for k, t in supernet.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in supernet.parameters())


def test_the_training_gradient_has_no_residue_of_the_attack(tmp_path: Path) -> None:
    """One step of SGD on a supernet's path equals one worked out by hand.

    The repository adds the parameter gradients of the last PGD step, so its step is about double.
    """
    space = robnet()
    mutables = space.simplify()
    torch.manual_seed(0)
    supernet = build_supernet(space)
    task = _task(train_limit=32)
    data = load_task(task)
    recipe = Recipe(
        epochs=1,
        batch_size=32,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        validation_attack=None,
        channels_last=False,
        augment=(),
    )
    recipe = dataclasses.replace(recipe, attack=dataclasses.replace(recipe.attack, steps=2))
    path = draw(mutables, np.random.RandomState(0))
    set_path(supernet, path)
    start = {k: p.detach().clone() for k, p in supernet.named_parameters()}
    stream = data.train.batches(
        32, shuffle=True, seed=derive_seed(3, "data"), epoch=0, drop_last=True
    )
    x, y = next(iter(stream))
    attack = attack_from_spec({"name": "pgd", "steps": 2}, task.threat)
    adv = attack(supernet, x, y, seed=derive_seed(3, "attack", 0, 0, 0))
    supernet.train()
    buffers = {k: b.clone() for k, b in supernet.named_buffers()}
    loss = F.cross_entropy(supernet(adv), y)
    used = dict(supernet.named_parameters())
    gradients = torch.autograd.grad(loss, list(used.values()), allow_unused=True)
    for name, buffer in supernet.named_buffers():
        buffer.copy_(buffers[name])

    class Fixed:
        def before_batch(self, model: Any, generator: torch.Generator) -> None:
            set_path(model, path)

    train(supernet, data, recipe, task.threat, seed=3, hook=Fixed(), validate=False)
    for (name, p), g in zip(supernet.named_parameters(), gradients, strict=True):
        expected = start[name] if g is None else start[name] - 0.1 * g
        torch.testing.assert_close(p.detach(), expected, atol=1e-6, rtol=1e-4)


# Settings


def _task(**changes: Any) -> Task:
    return parse(Task, {**TASK, **changes}, "task")


def _parsed(settings: dict[str, Any]) -> dict[str, Any]:
    made = parse(SearchSettings, settings, "strategy")
    return {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}


def test_plan_of_the_paper() -> None:
    """100 epochs of warm-up, 100 that build the memory, 200 of search."""
    phases = [phase for phase, _ in plan_epochs(SearchSettings())]
    assert [phases.count(p) for p in ("warmup", "build", "search")] == [100, 100, 200]
    several = plan_epochs(SearchSettings(**_parsed({"paths_per_epoch": 8, "epochs": 3})))
    assert len(several) == 13 + 13 + 3
    assert sorted(a for phase, archs in several for a in archs if phase == "build") == [*range(100)]


def test_modes() -> None:
    fixed = SearchSettings().resolved()
    legacy = SearchSettings(mode="legacy").resolved()
    assert (fixed.alpha.lr, legacy.alpha.lr) == (3e-4, 3e-5)
    assert (fixed.objective.averaging, legacy.objective.averaging) == ("pictures", "legacy")
    assert (legacy.predictor.kind, legacy.predictor.head, legacy.predictor.lr) == (
        "lstm",
        "legacy",
        1e-3,
    )
    assert (fixed.predictor.kind, fixed.predictor.head) == ("linear", "softplus")
    chosen = SearchSettings(**_parsed({"mode": "legacy", "alpha": {"lr": 0.1}})).resolved()
    assert chosen.alpha.lr == 0.1


def test_signals_are_changes_of_one_search() -> None:
    base = SearchSettings(**_parsed(SEARCH))
    found = parse_signals(
        base,
        {"few": {"signal": "warm-start", "measure": {"pictures": 8}}, "all": {"signal": "naive"}},
    )
    assert found["few"].measure.pictures == 8
    assert found["few"].measure.steps == found["all"].measure.steps == 1
    assert content_key(found["few"].objective.names) == content_key(base.objective.names)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"signal": "naiv"}, "naiv"),
        ({"candidates": -1}, "candidates: -1"),
        ({"seeds": 0}, "seeds: 0"),
        ({"epochs": 0, "warmup": {"archs": 0}}, "epochs: 0 is not allowed without"),
        ({"tau": 0}, "tau: 0"),
        ({"warmup": {"arch": 3}}, "did you mean 'archs'"),
        ({"measure": {"estimator": {"name": "basics"}}}, "did you mean 'basic'"),
        ({"measure": {"estimator": {"real": [0.07]}}}, "estimator.real: 0.07"),
        ({"measure": {"warm_start": {"extra": 0}}}, "extra: 0"),
        ({"objective": {"strengths": [0.1]}}, "6 weights for 1"),
        ({"signals": ["naive", "quick"]}, "quick"),
        ({"signals": "naive"}, "a list of signals"),
        ({"compare": {}, "signals": ["warm-start"]}, "compare.reference: 'naive'"),
        ({"compare": {"candidates": 1}, "signals": ["naive"]}, "candidates: 1"),
        ({"compare": {"pictures": 0}, "signals": ["naive"]}, "pictures: 0"),
        ({"supernet": {**TRAIN, "devices": 2, "strategy": "ddp_fork"}}, "devices: 2"),
        ({"supernet": None}, "strategy.supernet is missing"),
        ({"layout": "edges"}, "'edges' is not allowed"),
        ({"mode": "old"}, "old"),
    ],
)
def test_refusals_come_before_any_trial(
    tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        search(robnet(), evaluator(tmp_path), strategy(**arguments))
    assert not list(tmp_path.iterdir())
