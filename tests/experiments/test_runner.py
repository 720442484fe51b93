"""Whole runs in this process (sequential engine), and everything that is refused before a run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_robust import evaluate, load_architecture
from nni_robust.corruptions import evaluate_corruptions
from nni_robust.cost import measure_cost
from nni_robust.data import load_task
from nni_robust.errors import UserError
from nni_robust.evaluation import steps_curve
from nni_robust.experiments import load_experiment, run_experiment
from nni_robust.report import read_examples
from nni_robust.store import read_json, read_records

Write = Callable[..., str]


def quiet(line: str) -> None:
    pass


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def check_examples(run: Path, networks: dict[str, Any], best: torch.nn.Module) -> None:
    """Each network keeps three attacked test pictures, the same ones, with what it says of them."""
    assert all(n["examples"] == [f"examples/{k}/fgsm_0.1.safetensors"] for k, n in networks.items())
    found = [read_examples(run / n["examples"][0]) for n in networks.values()]
    for examples in found:
        assert examples.index.tolist() == [0, 16, 31]  # of 32 test pictures, at equal distances
        assert examples.attack == "fgsm@0.1"
        assert examples.classes == tuple("0123456789")
        change = abs(examples.adversarial - examples.clean)
        assert 0 < change.max() <= 0.1 + 1e-6
        assert (examples.clean == found[0].clean).all()
    for pictures, said in (
        (found[0].clean, found[0].predicted_clean),
        (found[0].adversarial, found[0].predicted_adversarial),
    ):
        assert best(torch.from_numpy(pictures)).argmax(1).tolist() == said.tolist()


def test_a_run_from_file_to_report_and_again(experiment_file: Write, tmp_path: Path) -> None:
    lines: list[str] = []
    file = experiment_file()
    run = run_experiment(file, out=str(tmp_path / "run"), report=lines.append)

    records = read_records(run / "candidates.jsonl")
    assert [r["phase"] for r in records] == ["supernet"] + ["candidate"] * 3
    assert all(r["status"] == "ok" for r in records)
    assert len({json.dumps(r["sample"], sort_keys=True) for r in records[1:]}) == 3
    told = [line.split(":")[0] for line in lines[:3]]
    assert told == ["supernet", "candidate 1 of 3 (trial 1)", "candidate 2 of 3 (trial 2)"]
    assert [r["index"] for r in records] == [0, 1, 2, 3]

    # The winner is the best score, and its file builds the network that was trained and tested.
    best = max(r["metrics"]["default"] for r in records[1:])
    winner = load_architecture(str(run / "best.yaml"))
    assert any(r["sample"] == winner.sample and r["metrics"]["default"] == best for r in records)
    final = read_json(run / "final.json")
    networks = {n["label"]: n for n in final["networks"]}
    assert list(networks) == ["best", "random", "undefended"]
    task = load_experiment(file).task
    network = winner.build().eval()
    again = evaluate(network, load_task(task, test=True).test, ["fgsm"], threat=task.threat)
    shown = networks["best"]["metrics"]
    assert again.metrics()["clean"] == shown["clean"]
    assert again.metrics()["fgsm@0.1"] == shown["fgsm@0.1"]
    flags = networks["best"]["reliability"]["checks"]
    told = {c.name: c.status for c in again.reliability.checks if c.name != "training-collapse"}
    assert {name: flags[name]["status"] for name in told} == told
    assert all("reliability" in r for r in (*records[1:], *networks.values()))
    cost = measure_cost(network, (3, 8, 8))
    assert (cost.params, cost.macs) == (shown["params"], shown["macs"])
    assert networks["best"]["eps_curve"][0] == [0.0, shown["clean"]]
    steps = steps_curve(network, load_task(task, test=True).test, [1, 3], threat=task.threat)
    assert networks["best"]["steps_curve"] == [list(point) for point in steps]
    fog = evaluate_corruptions(network, load_task(task, test=True).test, ["fog", "contrast"])
    for key in ("clean", "accuracy", "scale", "standard"):
        assert networks["best"]["corruptions"][key] == fog.as_dict()[key]
    check_examples(run, networks, network)
    assert networks["random"]["architecture"] == "random.yaml"
    assert load_architecture(str(run / "random.yaml")).sample != winner.sample
    assert (run / "report.html").stat().st_size > 10_000
    assert read_json(run / "run.json")["status"] == "finished"

    # Once more: everything is answered from the store, and nothing changes.
    before = {p.name: p.stat().st_mtime_ns for p in (run / "store").glob("*/record.json")}
    run_experiment(file, out=str(run), resume=True, report=quiet)
    assert read_records(run / "candidates.jsonl") == records
    assert read_json(run / "final.json") == final
    after = {p.name: p.stat().st_mtime_ns for p in (run / "store").glob("*/record.json")}
    assert after == before


def test_same_seed_same_result(experiment_file: Write, tmp_path: Path) -> None:
    file = experiment_file(final=None)
    scores = []
    for name in ("a", "b"):
        run = run_experiment(file, out=str(tmp_path / name), report=quiet)
        scores.append(
            [
                (r["sample"], {k: v for k, v in r["metrics"].items() if k != "seconds"})
                for r in read_records(run / "candidates.jsonl")
            ]
        )
    assert scores[0] == scores[1]


@pytest.mark.parametrize("strategy", ["random", "regularized-evolution"])
def test_nni_strategies_run_on_the_space(
    experiment_file: Write, tmp_path: Path, strategy: str
) -> None:
    arguments: dict[str, Any] = {"name": strategy}
    if strategy == "regularized-evolution":
        arguments.update(population_size=2, sample_size=2)
    file = experiment_file(
        strategy=arguments, final=None, nni={"engine": "sequential", "trials": 3}
    )
    lines: list[str] = []
    run = run_experiment(file, out=str(tmp_path / "run"), report=lines.append)
    records = read_records(run / "candidates.jsonl")
    assert [r["status"] for r in records] == ["ok"] * 3
    numbers = [(r["index"], line.split(":")[0]) for r, line in zip(records, lines, strict=False)]
    assert numbers == [(n, f"candidate {n + 1} of 3 (trial {n})") for n in range(3)]
    assert load_architecture(str(run / "best.yaml")).cost().params > 0


def test_bounds_are_kept_exactly(experiment_file: Write, tmp_path: Path) -> None:
    file = experiment_file(
        strategy={
            "name": "robust-one-shot",
            "candidates": 3,
            "require": {"params": [None, 3600], "convs": [4, 8]},
            "supernet": {"epochs": 1, "batch_size": 64, "attack": {"steps": 1}},
        },
        final=None,
    )
    run = run_experiment(file, out=str(tmp_path / "run"), report=quiet)
    for record in read_records(run / "candidates.jsonl")[1:]:
        assert record["metrics"]["params"] <= 3600
        assert 4 <= sum(int(digit) % 2 for digit in record["code"]) <= 8


def test_failed_candidates_are_recorded_and_zero_left_is_told(
    experiment_file: Write, tmp_path: Path
) -> None:
    diverges = {"epochs": 1, "batch_size": 64, "lr": 1e30, "attack": {"steps": 1}}
    file = experiment_file(
        evaluator={"name": "adversarial-training", "train": diverges, "attacks": ["fgsm"]}
    )
    out = tmp_path / "run"
    with pytest.raises(UserError, match="zero candidates left"):
        run_experiment(file, out=str(out), report=quiet)
    failed = [r for r in read_records(out / "candidates.jsonl") if r["phase"] == "candidate"]
    assert len(failed) == 3
    assert all("diverged" in r["error"] for r in failed)
    assert read_json(out / "run.json")["status"] == "failed"


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"task": {"dataset": "digitz"}}, "unknown data set 'digitz'; did you mean 'digits'"),
        ({"task": {"dataset": "cifar10", "root": "nowhere"}}, "nowhere"),
        ({"evaluator": {"attacks": ["pgdd20"]}}, "unknown attack"),
        ({"evaluator": {"attacks": []}}, "at least one attack"),
        ({"final": {"attacks": ["nope"]}}, "unknown attack 'nope'"),
        ({"strategy": {"candidates": 0}}, "candidates: 0"),
        ({"strategy": {"supernet": {"batch_size": 4096}}}, "supernet.batch_size: 4096 is not allo"),
        ({"evaluator": {"train": {"epoch": 1}}}, "unknown key 'epoch'.*did you mean 'epochs'"),
        ({"space": {"cells": 2}}, "cells"),
        ({"space": "wide-resnet", "evaluator": {"fsp": 8}}, "no list of modules 'cells'"),
        ({"strategy": "random"}, "nni.trials is missing"),
        ({"nni": {"engine": "ts", "trial_gpus": 50}}, "trial_gpus: 50 is more than"),
        ({"nni": {"training_service": {"platform": "moon"}}}, "training_service"),
        ({"strategy": {"require": {"colour": [1, 2]}}}, "unknown key 'colour'"),
        ({"strategy": {"require": {"params": [3, 2]}}}, "above the highest"),
        ({"strategy": {"require": {"params": [None, 5]}}}, "only 0 of .* candidates"),
        ({"task": {"train_limit": 5}}, "10 classes"),
    ],
)
def test_refused_before_any_work(
    experiment_file: Write, tmp_path: Path, sections: dict[str, Any], says: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=says) as caught:
        run_experiment(experiment_file(**sections), out=str(out), port=free_port(), report=quiet)
    assert "\n" not in str(caught.value)
    assert not (out / "candidates.jsonl").exists()


def test_port_in_use_is_told(experiment_file: Write, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = experiment_file(nni={"engine": "ts"})
        with pytest.raises(UserError, match=f"{port} is in use"):
            run_experiment(file, out=str(tmp_path / "run"), port=port, report=quiet)


def test_folders(experiment_file: Write, tmp_path: Path) -> None:
    file = experiment_file(final=None)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        run_experiment(file, out=str(full), report=quiet)
    with pytest.raises(UserError, match="holds no run"):
        run_experiment(file, out=str(full), resume=True, report=quiet)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run_experiment(file, out=str(blocked / "run"), report=quiet)
    assert os.listdir(full) == ["thesis.txt"]


def test_resume_refuses_other_settings(experiment_file: Write, tmp_path: Path) -> None:
    run = run_experiment(experiment_file(final=None), out=str(tmp_path / "run"), report=quiet)
    other = experiment_file(final=None, seed=5)
    with pytest.raises(UserError, match="other settings: seed: 0 there, 5 now"):
        run_experiment(other, out=str(run), resume=True, report=quiet)


def test_runs_are_numbered_and_resume_takes_the_latest(
    experiment_file: Write, tmp_path: Path
) -> None:
    file = experiment_file(
        final=None, strategy={"name": "random"}, nni={"engine": "sequential", "trials": 1}
    )
    first = run_experiment(file, report=quiet)
    second = run_experiment(file, report=quiet)
    assert [first.name, second.name] == ["tiny", "tiny-2"]
    assert run_experiment(file, resume=True, report=quiet) == second
    with pytest.raises(UserError, match="add --resume"):
        run_experiment(str(first), report=quiet)
    assert run_experiment(str(first), resume=True, report=quiet) == first
