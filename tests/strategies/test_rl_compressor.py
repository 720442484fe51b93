"""RLCompressor: it learns, repeats itself exactly, keeps budgets, resumes, takes any space."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
import yaml
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.hub.pytorch import DARTS, NasBench201
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d
from nni.nas.space import SimplifiedModelSpace

from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.evaluators import TabularEvaluator
from nni_robust.experiments import run_experiment
from nni_robust.policy import load_policy
from nni_robust.search_spaces import WideResNetSpace
from nni_robust.store import read_json, read_records
from nni_robust.strategies import RLCompressor
from nni_robust.tables import SyntheticTable
from nni_robust.task import Task
from nni_robust.trial import StoredEvaluator

GRID: dict[str, Any] = {
    "depths": (11, 11, 11),
    "widths": (16, 16, 16),
    "depth_values": [4, 5, 7, 9, 11],
    "width_values": [8, 10, 12, 14, 16],
}
TASK: dict[str, Any] = {"dataset": "blank", "attack": "pgd20"}


def search(strategy: Any, task: dict[str, Any] | None = None, budget: int | None = None,
           **table: Any) -> Any:  # fmt: skip
    """The models that were evaluated, in order."""
    evaluator = TabularEvaluator(task=task or TASK, **table)
    engine = SequentialExecutionEngine(max_model_count=budget)
    with torch.device("meta"):  # look-ups need no weights
        space = WideResNetSpace(10, **GRID)
    strategy(SimplifiedModelSpace.from_model(space, evaluator), engine)
    return list(engine.list_models())


def samples(strategy: RLCompressor) -> list[Any]:
    return [step["sample"] for step in strategy.steps]


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "algorithm", ["vpg", pytest.param("ppo", marks=_SLOW), pytest.param("a2c", marks=_SLOW)]
)
def test_mean_reward_rises(algorithm: str) -> None:
    """Within 60 updates on the table made from a formula, without imitation."""
    strategy = RLCompressor(algorithm=algorithm, updates=60, imitation=0, epochs=2, seed=1)
    search(strategy)
    last = max(step["update"] for step in strategy.steps)
    rewards = [[s["reward"] for s in strategy.steps if s["update"] == u] for u in range(last + 1)]
    first, end = np.concatenate(rewards[:8]), np.concatenate(rewards[-8:])
    error = (first.var() / len(first) + end.var() / len(end)) ** 0.5
    assert end.mean() > first.mean() + 3 * error


@_SLOW
def test_beats_random_search_at_equal_evaluations() -> None:
    table = SyntheticTable()
    task = Task(**TASK)
    column = table.deciding(task)
    chance, learned = [], []
    for seed in range(3):
        strategy = RLCompressor(updates=40, seed=seed)
        models = search(strategy)
        scores = [model.metrics.final for model in models]
        assert len({tuple(sorted(m.sample.items())) for m in models}) == len(models) <= 200
        learned.append(max(scores))
        rng = np.random.default_rng(seed)
        chance.append(
            max(
                table.row(
                    {f"stage{i}/{k}": int(rng.choice(GRID[f"{k}_values"]))
                     for i in (1, 2, 3) for k in ("depth", "width")}, task)[column]
                for _ in range(200)
            )
        )  # fmt: skip
    assert np.mean(learned) > np.mean(chance) + 0.001


def test_deterministic_and_resumed() -> None:
    whole = RLCompressor(updates=4, rollouts=3, seed=5)
    search(whole)
    again = RLCompressor(updates=4, rollouts=3, seed=5)
    search(again)
    assert again.steps == whole.steps  # (v): samples, rewards, probabilities
    stopped = RLCompressor(updates=4, rollouts=3, seed=5)
    search(stopped, budget=7)
    assert samples(stopped) == samples(whole)[: len(stopped.steps)]
    assert 0 < len(stopped.steps) < len(whole.steps)
    resumed = RLCompressor(updates=4, rollouts=3, seed=5)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    models = search(resumed)
    assert resumed.steps == whole.steps
    assert len(models) == len(whole.rounds.known) - 7
    other = RLCompressor(updates=1, rollouts=3, seed=6)
    search(other)
    assert samples(other) != samples(whole)[:3]


def test_budget_reward_and_policy_file(tmp_path: Path) -> None:
    strategy = RLCompressor(updates=3, rollouts=4, budget="12G", horizon=2, minimum={"depth": 5})
    models = search(strategy)
    assert [model.evaluator.phase for model in models][:2] == ["reference", "candidate"]
    reference = models[0].metrics.final
    cost = SyntheticTable().row(models[0].sample, Task(**TASK))
    for step in strategy.steps:
        assert step["cost"] <= 1.1 * 12e9
        assert min(v for k, v in step["sample"].items() if k.endswith("depth")) >= 5
        saved = 1 - step["cost"] / cost["macs"]
        gain = 0.8 * (step["robust"] - reference) + 0.2 * (step["clean"] - cost["clean"])
        assert step["reward"] == pytest.approx(10 * gain + 0.3 * saved * (2 - saved))
        product = (0.8 * step["robust"] + 0.2 * step["clean"]) / (
            0.8 * reference + 0.2 * cost["clean"]
        )
        assert step["reward_n2n"] == pytest.approx(product * saved * (2 - saved))
    strategy.export(tmp_path)
    assert len((tmp_path / "rl_steps.jsonl").read_text().splitlines()) == len(strategy.steps)
    load_policy(tmp_path)
    tuned = RLCompressor(policy=str(tmp_path))
    assert (tuned.updates, tuned.candidates) == (5, 25)
    search(tuned, budget=10)


@pytest.mark.parametrize("meta", ["multitask", "reptile"])
def test_meta_training_on_drawn_tasks(meta: str, tmp_path: Path) -> None:
    networks = [{"budget": {"macs": "15G"}}, {"budget": {"macs": "25G"}}]
    buffers = {"attack": ["clean", "fgsm", "pgd20"], "network": networks}
    strategy = RLCompressor(
        tasks=buffers, holdout=[{"budget": {"macs": "15G"}}], meta=meta, meta_updates=2,
        tasks_per_update=2, rollouts=2, updates=1, budget="15G",
    )  # fmt: skip
    models = search(strategy)
    assert len(strategy.meta_targets) == 5
    assert strategy.target not in strategy.meta_targets
    assert {m.evaluator.phase for m in models} == {"reference", "meta", "candidate"}
    assert {s["stage"] for s in strategy.steps} == {"meta", "search"}
    limits = {t.key: t.task.budget.macs for t in [*strategy.meta_targets, strategy.target]}
    assert all(s["cost"] <= 1.1 * limits[s["task_key"]] for s in strategy.steps)
    for step in strategy.steps:
        if step["task"].endswith("clean"):
            assert step["robust"] > 0.6  # the clean column decides
    winner = strategy.winner()
    assert winner is not None
    assert winner["stage"] == "search"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"updates": 0}, "strategy.updates: 0"),
        ({"algorithm": "dqn"}, "strategy.algorithm: 'dqn'"),
        ({"lr": 0}, "strategy.lr: 0"),
        ({"lam": 2}, "strategy.lam: 2"),
        ({"meta": "multitask"}, "strategy.tasks is missing"),
        ({"meta": "reptil", "tasks": []}, "did you mean 'reptile'"),
        ({"policy": "/nowhere"}, "no policy in '/nowhere'"),
        ({"budget": "1k"}, "no network of the space keeps"),
        ({"tasks": {"network": ["x"]}}, "strategy.tasks.network: 'x'"),
        (
            {"tasks": [{"teacher": {"architecture": "wrn-28-10", "train": {"epochs": -1}}}]},
            "strategy.tasks.0.teacher.train.epochs: -1 is not allowed",
        ),
        ({"minimum": {"dept": 3}}, "'dept' is no choice"),
    ],
)
def test_mistakes(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        search(RLCompressor(**arguments))


def test_a_network_drawn_again_has_the_reward_it_had() -> None:
    """And costs no evaluation."""
    strategy = RLCompressor(updates=12, rollouts=3, distinct=False, lr=0.1, keep_bias=3, seed=2)
    models = search(strategy)
    assert any(step["repeat"] for step in strategy.steps)
    rewards: dict[str, set[float]] = {}
    for step in strategy.steps:
        rewards.setdefault(json.dumps(step["sample"], sort_keys=True), set()).add(step["reward"])
    assert all(len(found) == 1 for found in rewards.values())
    assert len(models) == len(rewards) == sum(not step["repeat"] for step in strategy.steps)


class Formula(StoredEvaluator):
    """Scores by a function of the sample; no network is built."""

    store = None

    def __init__(
        self, score: Callable[[Any], float], task: Task | None = None, phase: str = "candidate"
    ) -> None:
        self.score, self.task, self.phase = score, task or Task(), phase

    def variant(self, **changes: Any) -> Formula:
        return Formula(**{"score": self.score, "task": self.task, "phase": self.phase, **changes})

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        return {"metrics": {"default": self.score(model.sample)}}


class OwnSpace(ModelSpace):
    """A space that a user might define."""

    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [2, 4, 8, 16])
        self.stem = MutableConv2d(3, width, 1)
        self.op = LayerChoice(
            {"conv": MutableConv2d(width, 10, 3), "small": MutableConv2d(width, 10, 1)}, label="op"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(self.stem(x)).mean((2, 3))


def run_formula(space: Any, score: Callable[[Any], float], **settings: Any) -> RLCompressor:
    strategy = RLCompressor(**settings)
    strategy(SimplifiedModelSpace.from_model(space, Formula(score)), SequentialExecutionEngine())
    return strategy


def test_space_of_the_user() -> None:
    def score(sample: Any) -> float:
        return sample["width"] / 32 + (sample["op"] == "small") / 2

    strategy = run_formula(OwnSpace(), score, updates=10, rollouts=3)
    winner = strategy.winner()
    assert winner is not None
    assert winner["sample"] == {"width": 16, "op": "small"}
    assert len({str(step["sample"]) for step in strategy.steps}) == 8  # and then it ends


def test_spaces_of_nni_hub() -> None:
    with torch.device("meta"):
        cells, darts = NasBench201(), DARTS(width=4, num_cells=3, dataset="cifar")
    strategy = run_formula(
        cells, lambda sample: sum(v == "conv_3x3" for v in sample.values()) / 6,
        updates=15, rollouts=4, seed=1,
    )  # fmt: skip
    means = [np.mean([s["robust"] for s in strategy.steps if s["update"] == u]) for u in range(15)]
    assert np.mean(means[-4:]) > np.mean(means[:4]) + 0.1
    with pytest.raises(UserError, match="'normal/input_2_0' is a CategoricalMultiple"):
        run_formula(darts, lambda sample: 0.0)


TRAINING = {
    "epochs": 1,
    "batch_size": 64,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "task": {"threat": {"eps": 0.1}, "train_limit": 128, "validation_limit": 64},
    "space": {"name": "robnet", "init_channels": 2, "cells": 3},
    "strategy": {"name": "rl-compressor", "updates": 2, "rollouts": 2},
    "evaluator": {"name": "adversarial-training", "train": TRAINING, "attacks": ["pgd3"]},
    "final": None,
    "nni": {"engine": "sequential"},
}


def test_interrupted_run_of_robnets_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(vi): the same sequence of networks, and no training twice."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "tiny.yml"
    file.write_text(yaml.safe_dump(TINY))
    whole = run_experiment(str(file), out=str(tmp_path / "whole"), report=lambda line: None)
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if sum(line.startswith("candidate") for line in lines) == 3:
            raise KeyboardInterrupt

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(str(file), out=str(cut), report=interrupt)
    before = {p: p.stat().st_mtime_ns for p in (cut / "store").glob("*/record.json")}
    assert len(before) == 3
    run_experiment(str(file), out=str(cut), resume=True, report=lambda line: None)
    after = {p: p.stat().st_mtime_ns for p in (cut / "store").glob("*/record.json")}
    assert len(after) == 4
    assert before.items() <= after.items()
    steps = [read_records(run / "rl_steps.jsonl") for run in (whole, cut)]
    assert steps[0] == steps[1]
    samples_ = [[r["sample"] for r in read_records(run / "candidates.jsonl")]
                for run in (whole, cut)]  # fmt: skip
    assert samples_[0] == samples_[1] == [step["sample"] for step in steps[0]]
    assert read_json(cut / "run.json")["status"] == "finished"
    best = max(steps[0], key=lambda step: step["reward"])
    assert yaml.safe_load((cut / "best.yaml").read_text())["sample"] == best["sample"]


def test_from_meta_training_to_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped files, much reduced: a policy is trained, used alone, and fine-tuned."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    less = [
        "task.train_limit=96", "task.validation_limit=32", "task.test_limit=32",
        "evaluator.train.epochs=1", "evaluator.attacks=[fgsm]", "nni.engine=sequential",
        "strategy.rollouts=2", "strategy.updates=1", "space.depths=[2, 2, 2]",
    ]  # fmt: skip

    def run(name: str, *overrides: str) -> Path:
        return run_experiment(
            name, out=str(tmp_path / name), overrides=[*less, *overrides], report=lambda line: None
        )

    meta = run(
        "rcnas-meta", "strategy.tasks=[{attack: fgsm}, {attack: clean}]", "strategy.meta_updates=1"
    )
    stages = [step["stage"] for step in read_records(meta / "rl_steps.jsonl")]
    assert set(stages) == {"meta", "search"}
    command = ["compress", "--task", str(meta / "config.yaml"), "--policy", str(meta), "--json"]
    assert main(command) == 0
    proposed = json.loads(capsys.readouterr().out)
    tuned = run(
        "rcnas-digits", f"strategy.policy={meta}", "task.teacher.train.epochs=1",
        "final.train.epochs=1", "final.attacks=[fgsm]", "final.rivals=[]", "final.limit=32",
    )  # fmt: skip
    records = read_records(tuned / "candidates.jsonl")
    assert [r["phase"] for r in records] == ["teacher", "reference", "candidate", "candidate"]
    limit = 1.1 * 1.5e6
    assert all(r["metrics"]["macs"] <= limit for r in records[2:])
    assert proposed["macs"] <= 1.5e6
    final = read_json(tuned / "final.json")["networks"]
    assert [network["label"] for network in final] == ["best"]
    assert final[0]["metrics"]["macs"] <= limit
    before, after = ((run / "policy" / "policy.safetensors").read_bytes() for run in (meta, tuned))
    assert before != after
