"""How fast one adversarial training step is, side by side with steps written like the seeds'.

A step is the attack of one batch (PGD from a random start) and one step of SGD on what it found.
Ours is the library's own training, called batch by batch; the seeds' are plain loops with the
batch's statistics during the attack. For RobNets they run on a network that computes as the
repository's does, and on ours, which tells what the loop gives from what the network gives.

Everything runs in one process on one thread, each contender on a copy of the network, in turns
whose order is reversed every time; CPU time is that of the calling thread.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.bench._contests import COMPILED, Contender, Contest
from nni_robust.bench._networks import ResNet18
from nni_robust.bench._rows import Row, one_thread
from nni_robust.bench._seed_steps import plain_step, repository_robnet
from nni_robust.bench.attack import run_contest
from nni_robust.bench.attack import summary as ratios
from nni_robust.config import parse
from nni_robust.data import DataSplits, ImageSet
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe
from nni_robust.training._steps import Steps

__all__ = ["NETWORKS", "OURS", "PLAIN", "TrainStepBench", "run_train_step_bench", "summary"]

#: Names of contenders: ours, ours without folding, and the seeds' loop.
OURS, UNFOLDED, PLAIN = "ours", "ours, unfolded", "plain loop"
#: The seeds' loop on RobNet's repository's network, and the repository's own loop on it.
PLAIN_THERE = "plain loop, repository's network"
REPOSITORY = "repository's loop and network"
#: Network -> (architecture of the zoo, what differs, pictures of a batch).
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "robnet-large": ("robnet-large", {}, 4),
    "robnet-free": ("robnet-free", {}, 4),
    "robnet-large-c12": ("robnet-large", {"init_channels": 12, "cells": 8}, 32),
    "wsrnet-basic": ("wsrnet-basic", {}, 4),
    "wsrnet-basic-c16": ("wsrnet-basic", {"width": 16, "cells": 8}, 32),
    "resnet18-w16": ("", {"width": 16}, 64),
}
#: The issue's: the seeds' time divided by ours, for the seeds' spaces.
GOAL = 2.0
_EPS, _STEP, _CLASSES = 8 / 255, 2 / 255, 10
_SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}


@dataclasses.dataclass(frozen=True)
class TrainStepBench:
    """Settings of the benchmark.

    Parameters
    ----------
    networks
        Some of :data:`NETWORKS`; ``NAME@N`` with another number of pictures.
    steps
        Steps of the attacks.
    turns
        Each contender runs so often, after once unmeasured.
    compile
        Also ours through ``torch.compile``, which takes minutes for a RobNet.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    steps: tuple[int, ...] = (7, 10)
    turns: int = 5
    compile: bool = False

    def __post_init__(self) -> None:
        for name in self.networks:
            base, at, pictures = name.partition("@")
            if base not in NETWORKS or (at and not (pictures.isdecimal() and int(pictures) > 1)):
                raise UserError(
                    f"networks: '{name}' is not allowed; allowed: {', '.join(NETWORKS)}, and "
                    "NAME@N for N pictures, 2 or more"
                )
        if not self.steps or min(self.steps) < 1:
            raise UserError(f"steps: {list(self.steps)} is not allowed; numbers of 1 or more are")
        if self.turns < 1:
            raise UserError(f"turns: {self.turns!r} is not allowed; 1 or more is")


def run_train_step_bench(
    settings: TrainStepBench | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Run the benchmark, on one thread.

    Parameters
    ----------
    settings
        What is run; None is all.
    say
        Told what is being done.

    Returns
    -------
    list
        One row for each network, number of attack steps, contender and turn: ``cpu`` and ``wall``
        in seconds; ``first step`` is the wall time of the one that compiles.
    """
    settings = settings or TrainStepBench()
    with one_thread() as where:
        rows = []
        for contest in _contests(settings):
            say(f"{contest.case}: {contest.network}")
            extra: dict[str, Row] = {}
            if settings.compile:
                seconds = _first_step(contest.contenders[COMPILED])
                extra = {COMPILED: {"first step": seconds}}
                say(f"{contest.case}: {contest.network}: compiled in {seconds} s")
            rows += [
                {**row, **where, **extra.get(row["contender"], {})}
                for row in run_contest(contest, settings.turns)
            ]
        return rows


def build(name: str) -> tuple[nn.Module, int]:
    """A network as if it had been in training for a while, and the pictures of its batches."""
    from nni_robust.architecture import load_architecture

    base, _, pictures = name.partition("@")
    zoo, changes, usual = NETWORKS[base]
    torch.manual_seed(0)
    if not zoo:
        model: nn.Module = ResNet18(**changes)
    else:
        architecture = load_architecture(zoo)
        args = {**architecture.space_args, **changes}
        architecture = dataclasses.replace(architecture, space_args=args)
        model = architecture.build(num_classes=_CLASSES, pretrained=False)
    n = int(pictures) if pictures else usual
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.rand(min(n, 8), 3, 32, 32))
    return model, n


def _contests(settings: TrainStepBench) -> Iterator[Contest]:
    for name in settings.networks:
        model, n = build(name)
        x, y = torch.rand(n, 3, 32, 32), torch.randint(0, _CLASSES, (n,))
        for steps in settings.steps:
            runs = contenders(model, x, y, steps, compiling=settings.compile)
            yield Contest(f"pgd{steps}", name, n, runs)


def _first_step(contender: Contender) -> float:
    """Wall time of a contender's first step, in seconds."""
    began = time.perf_counter()
    contender()
    return round(time.perf_counter() - began, 1)


def contenders(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, *, compiling: bool = False
) -> dict[str, Contender]:
    """Who takes a step on a batch, with so many steps of the attack; each on a copy."""
    how: dict[str, Any] = {"eps": _EPS, "step": _STEP, "steps": steps}
    found = {
        OURS: _ours(copy.deepcopy(model), x, y, steps, fold="auto"),
        UNFOLDED: _ours(copy.deepcopy(model), x, y, steps, fold=False),
    }
    if compiling:
        found[COMPILED] = _ours(copy.deepcopy(model), x, y, steps, fold="auto", compile=True)
    found |= {
        PLAIN: _plain(copy.deepcopy(model), x, y, **how),
    }
    if hasattr(model, "cells") and hasattr(model, "denoise"):
        found[PLAIN_THERE] = _plain(repository_robnet(model), x, y, **how)
        found[REPOSITORY] = _plain(repository_robnet(model), x, y, pictures_only=True, **how)
    return found


def _ours(model: nn.Module, x: Tensor, y: Tensor, steps: int, **settings: Any) -> Contender:
    attack = {"steps": steps, "step_size": _STEP, **settings}
    values = {**_SGD, "batch_size": len(x), "schedule": "constant", "attack": attack}
    recipe = parse(Recipe, {**values, "validation_attack": None, "accelerator": "cpu"}, "recipe")
    pictures = (x * 255).to(torch.uint8)
    images = ImageSet(pictures, y, [str(number) for number in range(_CLASSES)])
    data = DataSplits("noise", images, images)
    training = Steps(model, data, recipe, ThreatModel("linf", _EPS))
    return partial(training.step, x, y)


def _plain(model: nn.Module, x: Tensor, y: Tensor, **how: Any) -> Contender:
    return partial(plain_step, model, torch.optim.SGD(model.parameters(), **_SGD), x, y, **how)


def summary(rows: list[Row]) -> list[Row]:
    """For each contender of ours and each rival: the rival's time divided by ours.

    Returns
    -------
    list
        ``cpu`` and ``wall``: medians of the ratios within turns, with ``cpu range`` and ``wall
        range``. Above 1, ours is faster. `goal` is the issue's, where it has one.
    """
    out = ratios(rows)
    for entry in out:
        rival = PLAIN_THERE if entry["network"].startswith("robnet") else PLAIN
        of_a_seed = entry["network"].startswith(("robnet", "wsrnet"))
        if entry["ours"] == OURS and entry["rival"] == rival and of_a_seed:
            entry |= {"goal": GOAL, "met": entry["cpu"] >= GOAL}
    return out
