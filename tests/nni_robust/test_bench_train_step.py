"""``bench train-step``: its rivals compute what ours compute, its figures are what they say."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nni_robust.architecture import Architecture
from nni_robust.bench._contests import COMPILED
from nni_robust.bench._rivals import plain_loop
from nni_robust.bench._seed_steps import picture_loop, plain_step, repository_robnet
from nni_robust.bench.train_step import (
    NETWORKS,
    OURS,
    PLAIN,
    PLAIN_THERE,
    REPOSITORY,
    UNFOLDED,
    build,
    contenders,
    summary,
)
from nni_robust.cli import main

EPS, STEP = 8 / 255, 2 / 255
#: Cells with every state on every kind of edge; the second and third halve the resolution.
CODES = ["33123210120232", "10230132130213", "00213333013210"]


def robnet(codes: Any = CODES) -> nn.Module:
    torch.manual_seed(0)
    architecture = Architecture.from_dict(
        {
            "format": "nni-robust/architecture/1",
            "name": "small",
            "space": "robnet",
            "space_args": {"init_channels": 4, "cells": 3, "cell_free": True},
            "code": codes,
            "num_classes": 10,
            "input_shape": [3, 8, 8],
            "provenance": {"kind": "found", "source": "written by hand"},
        }
    )
    model = architecture.build(num_classes=10).double().train()
    for _ in range(3):
        model(torch.rand(8, 3, 8, 8, dtype=torch.float64))
    return model


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    """Pictures of which no ball touches the box."""
    random = torch.Generator().manual_seed(1)
    x = 0.3 + 0.4 * torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=random)
    return x, torch.arange(n)


@pytest.mark.parametrize("train", [False, True])
def test_the_repositorys_network_computes_what_ours_does(train: bool) -> None:
    """Logits, gradients of pictures and weights, and a step of SGD: shared ReLUs, skipped zeros."""
    ours, (x, y) = robnet().train(train), batch()
    theirs = repository_robnet(ours)
    left = []
    for model in (ours, theirs):
        pictures = x.clone().requires_grad_()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3)
        logits = model(pictures)
        F.cross_entropy(logits, y).backward()
        gradients = [p.grad for p in model.parameters()]
        optimizer.step()
        left.append([logits, pictures.grad, *gradients, *model.parameters(), *model.buffers()])
    assert len(left[0]) == len(left[1]) > 100
    for one, other in zip(*left, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


class Rectifications(TorchDispatchMode):
    """Counts ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func in (torch.ops.aten.relu.default, torch.ops.aten.clamp_min.default)
        return func(*args, **(kwargs or {}))


def test_a_relu_is_computed_once_for_all_that_begin_with_it() -> None:
    # Every edge holds a convolution: 14 a cell, from five states of which one has no other edges.
    ours, (x, _) = robnet(["11111111111111"] * 3), batch()
    found = []
    for model in (ours, repository_robnet(ours)):
        with torch.no_grad(), Rectifications() as count:
            model(x)
        found.append(count.number)
    # A cell's second ReLUs, the first ones of its states, and those of stem and two cells' outputs.
    assert found == [3 * (14 + 5) + 3, 3 * (14 + 14 + 2)]


@pytest.mark.parametrize("train", [False, True])
def test_both_loops_find_the_same(train: bool) -> None:
    x, y = batch()
    found = []
    for loop in (plain_loop, picture_loop):
        model = robnet()
        torch.manual_seed(2)
        adv = loop(model, x, y, eps=EPS, step=STEP, steps=3, train=train)
        assert ((adv - x).abs() <= EPS + 1e-12).all()
        found.append([adv, *model.buffers()])
        with_weights = any(p.grad is not None for p in model.parameters())
        assert with_weights == (loop is plain_loop)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_plain_step_trains_on_what_the_attack_found() -> None:
    x, y = batch()
    one, two = robnet(), robnet()
    optimizers = [torch.optim.SGD(model.parameters(), 0.05) for model in (one, two)]
    torch.manual_seed(3)
    plain_step(one, optimizers[0], x, y, eps=EPS, step=STEP, steps=2)
    torch.manual_seed(3)
    adv = plain_loop(two, x, y, eps=EPS, step=STEP, steps=2, train=True)
    gradients = torch.autograd.grad(F.cross_entropy(two(adv), y), [*two.parameters()])
    for a, b, gradient in zip(one.parameters(), two.parameters(), gradients, strict=True):
        torch.testing.assert_close(a, b - 0.05 * gradient, rtol=1e-10, atol=1e-10)


def test_contenders_of_a_robnet() -> None:
    """Each trains the network that it says it does, once for each call."""
    model, pictures = build("robnet-large-c12@2")
    assert pictures == 2
    assert NETWORKS["robnet-large-c12"][2] == 32
    x, y = torch.rand(2, 3, 32, 32), torch.arange(2)
    found = contenders(model, x, y, 1)
    before = copy.deepcopy(model.state_dict())
    assert list(found) == [OURS, UNFOLDED, PLAIN, PLAIN_THERE, REPOSITORY]
    found[REPOSITORY]()
    found[OURS]()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["bench", "train-step", "--quick", "--out", str(tmp_path), "--json"]) == 0
    assert torch.get_num_threads() == threads
    found = json.loads(capsys.readouterr().out)
    with open(tmp_path / "train-step.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(found["rows"]) == 3 * 2  # contenders, turns
    assert {(row["case"], row["network"], row["pictures"]) for row in rows} == {
        ("pgd3", "resnet18-w16@2", "2")
    }
    assert all(row["torch"] == torch.__version__ and row["threads"] == "1" for row in rows)
    assert all(float(row["cpu"]) > 0 and row["load"] for row in rows)
    assert (tmp_path / "summary.csv").is_file()
    assert [(e["ours"], e["rival"]) for e in found["summary"]] == [
        ("ours", "plain loop"),
        ("ours, unfolded", "plain loop"),
    ]


def test_only_the_compiled_contender_compiles() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10))
    found = contenders(model, torch.rand(2, 3, 8, 8), torch.arange(2), 3, compiling=True)
    assert list(found) == [OURS, UNFOLDED, COMPILED, PLAIN]
    for name, contender in found.items():
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        contender()
        contender()
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
        assert compiled == (name == COMPILED)


def test_goals_are_of_the_seeds_spaces() -> None:
    def row(network: str, name: str, cpu: float) -> dict[str, Any]:
        case = {"case": "pgd7", "network": network, "contender": name, "turn": 0}
        return {**case, "cpu": cpu, "wall": cpu}

    def goals(network: str, rival: str, cpu: float) -> Any:
        (entry,) = summary([row(network, "ours", 1.0), row(network, rival, cpu)])
        return entry.get("goal"), entry.get("met")

    assert goals("robnet-large", "plain loop, repository's network", 2.1) == (2.0, True)
    assert goals("robnet-large", "plain loop, repository's network", 1.9) == (2.0, False)
    assert goals("robnet-large", "plain loop", 1.9) == (None, None)
    assert goals("wsrnet-basic-c16", "plain loop", 1.9) == (2.0, False)
    assert goals("resnet18-w16", "plain loop", 2.1) == (None, None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--networks", "robnet-larg"], "networks: 'robnet-larg' is not allowed"),
        (["--networks", "robnet-large@1"], "networks: 'robnet-large@1' is not allowed"),
        (["--steps", "7,x"], "--steps: '7,x' is not allowed"),
        (["--steps", "0"], "steps: [0] is not allowed"),
    ],
)
def test_refusals(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train-step", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
