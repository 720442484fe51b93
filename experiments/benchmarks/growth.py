"""How cost grows: with attack steps, strengths, picture size, candidates, trials and workers.

    python experiments/benchmarks/growth.py measure --out FOLDER [--quick]
    python experiments/benchmarks/growth.py summary --out FOLDER

``measure`` writes ``growth.csv`` row by row and goes on where it was stopped; ``summary`` writes
``laws.csv`` and ``growth.png``.

Steps, strengths, sizes and decoding are seconds of the one computing thread; candidates (looked up
in a table, so that only our own work remains) seconds of CPU time of the whole program; trials and
workers seconds of the clock, for a trial waits for NNI's manager.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import itertools
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from growth_law import read, summarise
from PIL import Image
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.bench import machine
from nni_robust.bench._networks import ResNet18
from nni_robust.config import parse
from nni_robust.data import load_dataset
from nni_robust.data._decode import Geometry, decode
from nni_robust.evaluation import evaluate
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, train

EPS = 8 / 255
#: Strategy -> its settings for so many candidates, and how many at most. The policy of the RL
#: compressor knows what it wants by then, and draws nothing new; TPE grows with the square.
STRATEGIES: dict[str, tuple[Callable[[int], dict[str, Any]], int]] = {
    "random": (lambda number: {"name": "random"}, 6400),
    "regularized-evolution": (
        lambda number: {"name": "regularized-evolution", "population_size": 30},
        6400,
    ),
    "tpe": (lambda number: {"name": "tpe"}, 3200),
    "rl-compressor": (
        lambda number: {"name": "rl-compressor", "updates": number // 4, "rollouts": 4},
        400,
    ),
}
TABLE = {
    "task": {"dataset": "blank", "threat": {"eps": "8/255"}, "attack": "pgd20"},
    "space": {
        "name": "wide-resnet",
        "depths": [11, 11, 11],
        "widths": [16, 16, 16],
        "depth_values": [4, 5, 7, 9, 11],
        "width_values": [8, 10, 12, 14, 16],
    },
    "evaluator": {"name": "tabular", "table": "synthetic:wrn"},
    "final": None,
}
TRAINING: dict[str, Any] = {"batch_size": 64, "lr": 0.05, "validation_attack": None}
TRAINED = {
    "task": {
        "dataset": "digits",
        "threat": {"eps": 0.1},
        "train_limit": 512,
        "validation_limit": 64,
    },
    "space": {"name": "robnet", "init_channels": 8, "cells": 3},
    "strategy": {"name": "random"},
    "evaluator": {
        "name": "adversarial-training",
        "train": {**TRAINING, "epochs": 4, "attack": {"steps": 5}},
        "attacks": ["pgd10"],
    },
    "final": None,
}


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What grows.

    Parameters
    ----------
    values
        Where cost is measured, and where with ``--quick``.
    cost
        Seconds at one of them; several rounds for those of the computing thread.
    unit
        What `cost` counts.
    rounds
        Measurements of each value, in turns.
    """

    values: Sequence[int]
    quick: Sequence[int]
    cost: Callable[[int], float]
    unit: str = "thread CPU"
    rounds: int = 5


def pictures(count: int, side: int = 32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(count, 3, side, side), torch.randint(0, 10, (count,))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = ResNet18(16)
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.rand(16, 3, 32, 32))
    return net.eval()


def thread_seconds(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def steps(number: int) -> float:
    net, (x, y) = network(), pictures(16)
    run = attack("pgd", eps=EPS, steps=number, fold=True, channels_last=True)
    run(net, x[:2], y[:2])  # first calls choose kernels
    return thread_seconds(lambda: run(net, x, y, seed=0))


@functools.cache
def resistant() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained against an attack, for strengths mean nothing to another, and pictures."""
    data = load_dataset("digits", test=True)
    assert data.test is not None
    recipe = parse(Recipe, {**TRAINING, "epochs": 5, "attack": {"steps": 5}}, "recipe")
    enlarged = nn.Sequential(nn.Upsample(scale_factor=2), ResNet18(16, blocks=1))
    net = train(enlarged, data, recipe, ThreatModel("linf", 0.2)).model
    x, y = next(iter(data.test.batches(128)))
    return net, x, y


def spectrum(number: int) -> list[float]:
    return [0.05 + 0.2 * k / number for k in range(1, number + 1)]


def strengths(number: int) -> float:
    """Strengths up to 0.25 in one pass."""
    net, x, y = resistant()
    return thread_seconds(lambda: evaluate_spectrum(net, (x, y), spectrum(number), "pgd10"))


def separate_strengths(number: int) -> float:
    """The same strengths as evaluations of their own."""
    net, x, y = resistant()
    threats = [ThreatModel("linf", eps) for eps in spectrum(number)]
    return thread_seconds(lambda: [evaluate(net, (x, y), "pgd10", threat=t) for t in threats])


def size(side: int) -> float:
    net, (x, y) = network(), pictures(4, side)
    run = attack("pgd", eps=EPS, steps=3, fold=True, channels_last=True)
    run(net, x[:1], y[:1])
    return thread_seconds(lambda: run(net, x, y, seed=0))


def batch(number: int) -> float:
    """So many pictures of 32x32 at once."""
    net, (x, y) = network(), pictures(number)
    run = attack("pgd", eps=EPS, steps=3, fold=True, channels_last=True)
    run(net, x[:1], y[:1])
    return thread_seconds(lambda: run(net, x, y, seed=0))


@functools.cache
def photograph() -> str:
    """A JPEG of ImageNet's usual size, about 80 kB: soft shapes and noise."""
    dice = np.random.default_rng(0)
    shapes = Image.fromarray(dice.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize((500, 375), Image.Resampling.BICUBIC), dtype=float)
    pixels += dice.normal(0, 12, pixels.shape)
    path = Path(tempfile.mkdtemp(), "photograph.jpg")
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return str(path)


def decoded(number: int) -> float:
    """Pictures read from the disk and cut to 224x224 at random, as a training does."""
    path, how, dice = photograph(), Geometry(224, 224, 256), random.Random(0)
    return thread_seconds(lambda: [decode(path, how, dice) for _ in range(number)])


def candidates(strategy: str) -> Callable[[int], float]:
    def cost(number: int) -> float:
        settings = {**TABLE, "strategy": STRATEGIES[strategy][0](number)}
        settings["nni"] = {"engine": "sequential", "trials": number}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_experiment(settings)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    return cost


def trials(number: int) -> float:
    """Trials of NNI's training service that look their figure up, two at a time."""
    settings = {**TABLE, "strategy": {"name": "random"}}
    settings["evaluator"] = {**settings["evaluator"], "as_trials": True}  # type: ignore[dict-item]
    settings["nni"] = {"trials": number, "concurrency": 2, "port": free_port()}
    began = time.monotonic()
    run_experiment(settings)
    return time.monotonic() - began


def workers(number: int) -> float:
    """Eight candidates trained on digits, so many at a time, one thread each."""
    settings = {**TRAINED, "nni": {"trials": 8, "concurrency": number, "port": free_port()}}
    began = time.monotonic()
    run_experiment(settings)
    return time.monotonic() - began


def run_experiment(settings: dict[str, Any]) -> None:
    """As a program of its own, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "growth.yml")
        path.write_text(yaml.safe_dump({"name": "growth", "seed": 0, **settings}))
        environment = {**os.environ, "HOME": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "nni_robust", "run", str(path), "--out", f"{folder}/run"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        records = Path(folder, "run", "candidates.jsonl").read_text().splitlines()
        done = sum(json.loads(line).get("status", "ok") == "ok" for line in records)
        if done != settings["nni"]["trials"]:
            raise SystemExit(f"{done} of {settings['nni']['trials']} candidates have a result")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


QUANTITIES: dict[str, Quantity] = {
    "attack steps": Quantity((1, 2, 5, 10, 20, 50, 100), (1, 2, 4), steps),
    "strengths, one pass": Quantity((1, 2, 4, 8, 16, 32), (1, 2), strengths),
    "strengths, apart": Quantity((1, 2, 4, 8, 16, 32), (1, 2), separate_strengths, rounds=3),
    "picture side": Quantity((32, 64, 96, 128, 192, 224), (32, 64), size),
    "pictures in a batch": Quantity((4, 16, 64, 196), (2, 4), batch),
    "pictures decoded": Quantity((10, 100, 1000), (2, 4), decoded, rounds=3),
    **{
        f"candidates, {name}": Quantity(
            [number for number in (100, 200, 400, 800, 1600, 3200, 6400) if number <= most],
            (4, 8),
            candidates(name),
            "CPU",
            rounds=2,
        )
        for name, (_, most) in STRATEGIES.items()
    },
    "trials of NNI": Quantity((25, 100, 400), (2, 4), trials, "clock", rounds=1),
    "workers": Quantity((1, 2, 4), (1, 2), workers, "clock", rounds=3),
}


def measure(folder: Path, names: Sequence[str], quick: bool) -> None:
    torch.set_num_threads(1)
    path = folder / "growth.csv"
    known = read(path)
    done = {(row["quantity"], row["value"], row["round"]) for row in known}
    here = machine()
    columns = ["quantity", "value", "round", "seconds", "unit", "load", *here]
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not known:
            writer.writeheader()
        for name in names:
            quantity = QUANTITIES[name]
            values = quantity.quick if quick else quantity.values
            rounds = 1 if quick else quantity.rounds
            for number, value in itertools.product(range(rounds), values):
                if (name, str(value), str(number)) in done:
                    continue
                load = os.getloadavg()[0]
                seconds = quantity.cost(value)
                row = {"quantity": name, "value": value, "round": number, "load": f"{load:.1f}"}
                row |= {"seconds": f"{seconds:.4f}", "unit": quantity.unit, **here}
                writer.writerow(row)
                file.flush()
                print(name, value, f"{seconds:.3f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("measure", "summary"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quantities", nargs="*", default=list(QUANTITIES), choices=QUANTITIES)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "measure":
        measure(options.out, options.quantities, options.quick)
    summarise(options.out)


if __name__ == "__main__":
    main()
