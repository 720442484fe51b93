"""AutoAttack against its authors' code, and the light variant against the full one.

    python experiments/benchmarks/autoattack_agreement.py official CHECKOUT --out FOLDER
    python experiments/benchmarks/autoattack_agreement.py light --out FOLDER
    python experiments/benchmarks/autoattack_agreement.py summary --out FOLDER

CHECKOUT is a copy of github.com/fra31/auto-attack (the folder that holds ``autoattack/``). Small
networks are trained on the digits; ``agreement.csv`` and ``light.csv`` are written row by row.
``official`` goes on where it was stopped, and ``summary`` reads what there is of ``light.csv``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.analysis.statistics import kendall_tau
from nni_robust.attacks import attack
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import ball_around
from nni_robust.data import load_dataset
from nni_robust.spectrum import count_passes
from nni_robust.threat import ThreatModel

PICTURES = 240
# How the network is trained, and where it is attacked.
NETWORKS: dict[str, dict[str, Any]] = {
    "linf-trained": {"eps": 0.15, "norm": "linf", "at": [("linf", 0.1), ("linf", 0.15)]},
    "l2-trained": {"eps": 0.8, "norm": "l2", "at": [("l2", 0.5), ("l2", 0.8)]},
    "plain": {"eps": 0.0, "norm": "linf", "at": [("linf", 0.03)]},
}
# Attack, and the seeds that both are run with; FAB-T has no random part.
ATTACKS = {"apgd-ce": 3, "apgd-dlr": 3, "apgd-t": 3, "fab-t": 1, "square": 3, "autoattack": 2}
NORMS = {"linf": "Linf", "l2": "L2"}
COLUMNS = (
    "network,norm,eps,attack,comparison,seeds,pictures,ours,official,difference_points,"
    "differing_pictures,official_differs_from_itself,ours_seconds,official_seconds"
)


def train(
    seed: int, eps: float, norm: Any = "linf", epochs: int = 8, width: int = 12
) -> nn.Sequential:
    """A small convolutional network, trained on digits under PGD-5 (eps 0: on clean ones)."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 10),
    )
    images = load_dataset("digits", test=True).train
    x, y = next(iter(images.batches(len(images))))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    pgd = attack("pgd5", eps=eps, norm=norm)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), 64):
            adv = pgd(net, x[rows], y[rows])
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(net(adv), y[rows]))
            optimizer.step()
    return net.eval()


def pictures(count: int) -> tuple[Tensor, Tensor]:
    x, y = next(iter(load_dataset("digits", test=True).test.batches(count)))
    return x, y


def resists(net: nn.Module, adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = net(adv).argmax(1) == y
    return result


# --- the authors' code ---------------------------------------------------------------------------


def official(net: nn.Module, name: str, norm: str, eps: float, seed: int) -> Any:
    """The authors' object for one attack, or for their standard evaluation."""
    from autoattack import AutoAttack as Theirs  # type: ignore[import-not-found]

    which = {} if name == "autoattack" else {"version": "custom", "attacks_to_run": [name]}
    made = Theirs(net, norm=NORMS[norm], eps=eps, seed=seed, verbose=False, device="cpu", **which)
    if name != "autoattack":  # what "standard" sets; "custom" leaves 5 restarts
        made.apgd.n_restarts = 1
    return made


def with_our_starts(made: Any, x: Tensor, norm: Any, eps: float, seed: int) -> Any:
    """Let each of their runs of APGD start where ours does, picture by picture."""
    place = {row.numpy().tobytes(): n for n, row in enumerate(x)}
    ball, noise = ball_around(x, ThreatModel(norm, eps)), Noise(seed, torch.arange(len(x)))
    for part in (made.apgd, made.apgd_targeted):
        numbers, single = itertools.count(), part.attack_single_run

        def run(
            some: Tensor,
            y: Tensor,
            x_init: None = None,
            numbers: Any = numbers,
            single: Any = single,
        ) -> Any:
            rows = torch.tensor([place[row.numpy().tobytes()] for row in some])
            return single(some, y, ball.random_start(noise, 4 * next(numbers))[rows])

        part.attack_single_run = run
    return made


def with_every_place(made: Any) -> Any:
    """Let their squares reach the last row and column."""
    made.square.random_int = lambda low=0, high=1, shape=(1,): (
        low + torch.rand(list(shape)) * (high + 1 - low)
    ).long()
    return made


def compare(checkout: Path, folder: Path) -> None:
    sys.path.insert(0, str(checkout))
    x, y = pictures(PICTURES)
    path, done = folder / "agreement.csv", set()
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            done = {tuple(row[:5]) for row in csv.reader(file)}
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(COLUMNS.split(","))
        for (network, how), (norm, eps) in ((n, w) for n in NETWORKS.items() for w in n[1]["at"]):
            net = train(0, how["eps"], how["norm"])
            for name in ATTACKS:
                where = (network, norm, str(eps), name)
                open_ones = [v for v in variants(name) if (*where, v) not in done]
                for row in _rows(net, x, y, name, norm, eps, open_ones):
                    writer.writerow([*where, *row])
                    file.flush()


def variants(name: str) -> list[str]:
    """How the authors' code is compared: as it is, and without what differs for known reasons."""
    if name.startswith("apgd"):
        return ["as it is", "same starts"]
    return {
        "square": ["as it is", "every place"],
        "autoattack": ["as it is", "same starts, every place"],
    }.get(name, ["as it is"])


def _rows(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    name: str,
    norm: Any,
    eps: float,
    wanted: list[str],
) -> Iterator[list[Any]]:
    if not wanted:
        return
    seeds = ATTACKS[name]
    mine, spent = _run(lambda s: attack(name, norm=norm, eps=eps)(net, x, y, seed=s), net, y, seeds)
    for variant in wanted:

        def theirs(s: int, variant: str = variant) -> Tensor:
            made = official(net, name, norm, eps, s)
            if "same starts" in variant:
                made = with_our_starts(made, x, norm, eps, s)
            if "every place" in variant:
                made = with_every_place(made)
            result: Tensor = made.run_standard_evaluation(x, y, bs=len(x))
            return result

        other, their_time = _run(theirs, net, y, seeds)
        ours, official_accuracy = (100 * r.float().mean().item() for r in (mine, other))
        row: list[Any] = [variant, seeds, len(x), f"{ours:.2f}", f"{official_accuracy:.2f}"]
        row += [f"{ours - official_accuracy:+.2f}", f"{_mean_difference(mine, other):.1f}"]
        row += [f"{_mean_difference(other, other.roll(1, 0)):.1f}" if seeds > 1 else ""]
        yield [*row, f"{spent:.1f}", f"{their_time:.1f}"]


def _run(
    call: Callable[[int], Tensor], net: nn.Module, y: Tensor, seeds: int
) -> tuple[Tensor, float]:
    """(seeds, N), bool, and seconds of CPU time for each run."""
    began = time.process_time()
    found = torch.stack([resists(net, call(seed), y) for seed in range(seeds)])
    return found, (time.process_time() - began) / seeds


def _mean_difference(one: Tensor, other: Tensor) -> float:
    """Pictures on which two runs differ, mean over seeds."""
    return (one != other).sum(1).float().mean().item()


# --- the light variant ---------------------------------------------------------------------------


def light(folder: Path) -> None:
    x, y = pictures(PICTURES)
    levels = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.18, 0.2)
    nets = [
        train(seed, eps, epochs=epochs, width=width)
        for seed, (eps, (epochs, width)) in enumerate(itertools.product(levels, ((4, 8), (8, 16))))
    ]
    specs = ["autoattack", "autoattack-light10", "autoattack-light20", "autoattack-light"]
    specs += ["autoattack-light50", "autoattack-light100", "apgd-ce", "pgd20"]
    with open(folder / "light.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "attack", "accuracy", "passes", "cpu_seconds"])
        for number, net in enumerate(nets):
            for name in specs:
                began = time.process_time()
                with count_passes(net) as passes:
                    adv = attack(name, eps=0.1)(net, x, y, seed=0)
                seconds = time.process_time() - began
                accuracy = resists(net, adv, y).float().mean().item()
                row = (accuracy, passes.equivalent, seconds)
                writer.writerow([number, name, *(f"{v:.4f}" for v in row)])
                file.flush()
    summarise(folder)


def summarise(folder: Path) -> None:
    """Write ``light-summary.csv``: rank agreement and cost over the networks that are whole."""
    found: dict[str, dict[str, list[float]]] = {}
    with open(folder / "light.csv", newline="", encoding="utf-8") as file:
        for number, name, *values in list(csv.reader(file))[1:]:
            found.setdefault(number, {})[name] = [float(v) for v in values]
    most = max(len(results) for results in found.values())
    whole = [results for results in found.values() if len(results) == most]
    full = torch.tensor([results["autoattack"] for results in whole])
    with open(folder / "light-summary.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = "attack,networks,kendall_tau,low,high,passes_share,cpu_share,mean_gap_points"
        writer.writerow([*columns.split(","), "largest_gap_points"])
        for name in whole[0]:
            mine = torch.tensor([results[name] for results in whole])
            tau = kendall_tau(mine[:, 0].tolist(), full[:, 0].tolist())
            gap = 100 * (mine[:, 0] - full[:, 0])
            passes, cpu = (float(mine[:, k].sum() / full[:, k].sum()) for k in (1, 2))
            numbers = (tau.value, tau.low, tau.high, passes, cpu, gap.mean(), gap.max())
            row = ["" if v is None else f"{float(v):.3f}" for v in numbers]
            writer.writerow([name, len(whole), *row])
            print(name, len(whole), *row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("official", "light", "summary"))
    parser.add_argument("checkout", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "light":
        light(options.out)
    elif options.what == "summary":
        summarise(options.out)
    elif options.checkout is None:
        parser.error("official needs the folder of a checkout of fra31/auto-attack")
    else:
        compare(options.checkout, options.out)


if __name__ == "__main__":
    main()
