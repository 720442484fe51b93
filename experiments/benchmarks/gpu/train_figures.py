"""First real figures: three networks, one recipe, CIFAR-10 (JPEG), PGD-20 and AutoAttack.

``python experiments/benchmarks/gpu/train_figures.py --archive cifar10-jpeg.tar.xz --out DIR``: one
command of at most ten minutes; the same command again goes on where it stopped.

Each network gets an equal share of the time. How many epochs that is worth is measured first, so
that the schedule ends with the training. Then its accuracy on the first test pictures, in random
order, is measured part by part. Everything is in DIR/figures.json and DIR/figures.md at any time:
figures of the pictures so far, with their number and what the reliability checks say.

This is a short training for comparing networks with each other, not the papers' training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from _common import (
    Clock,
    Results,
    add_arguments,
    check_networks,
    device_of,
    in_one_sentence,
    network,
    pictures,
)

from nni_robust import evaluate
from nni_robust.bench._rows import Row
from nni_robust.config import parse
from nni_robust.data import DataSplits
from nni_robust.store import write_text
from nni_robust.threat import ThreatModel
from nni_robust.training import EpochRecord, Recipe, train

THREAT = ThreatModel("linf", 8 / 255)
#: The one recipe; epochs follow from the time.
RECIPE: dict[str, Any] = {
    "batch_size": 128,
    "loss": "madry",
    "attack": {"steps": 10, "step_size": "2/255"},
    "lr": 0.1,
    "schedule": "cosine",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "validation_attack": "pgd10",
    "validation_limit": 256,
    "precision": "bf16-mixed",
}
_MOST_EPOCHS, _PROBE, _PART = 100, 20, 250
_QUICK_EPOCHS = 2


class OutOfTime(Exception):
    """The share of the time is used; what was done is kept."""


def recipe(epochs: int, device: torch.device, quick: bool) -> Recipe:
    values = {**RECIPE, "epochs": epochs, "accelerator": device.type}
    if quick:
        values |= {"batch_size": 32, "attack": {"steps": 2, "step_size": "4/255"}}
        values |= {"validation_attack": "fgsm", "precision": "32-true"}  # CPUs are slow in bf16
    return parse(Recipe, values, "recipe")


def epochs_for(
    name: str, data: DataSplits, seconds: float, device: torch.device, quick: bool
) -> tuple[int, float]:
    """How many epochs fit, and the seconds of one, from a short training that is thrown away."""
    size = recipe(1, device, quick).batch_size
    steps = min(_PROBE, len(data.train) // size)
    some = dataclasses.replace(data, train=data.train.head(steps * size))
    model, plan = network(name, quick), recipe(1, device, quick)
    began = time.monotonic()
    train(model, some, plan, THREAT, validate=False)  # kernels are chosen, memory is found
    began = time.monotonic()
    train(model, some, plan, THREAT, validate=False)
    epoch = (time.monotonic() - began) * (len(data.train) / (steps * size))
    most = _QUICK_EPOCHS if quick else _MOST_EPOCHS
    return max(1, min(most, int(seconds / (1.1 * epoch)))), round(epoch, 2)


def trained(
    name: str, data: DataSplits, row: Row, seconds: float, folder: Path, device: torch.device,
    quick: bool,
) -> nn.Module:  # fmt: skip
    """Train, or go on, or read what is there; `row` gets what is known after each epoch."""
    if "epochs" not in row:
        share = 0.9 * seconds
        row["epochs"], row["seconds of an epoch"] = epochs_for(name, data, share, device, quick)
    began = time.monotonic()
    torch.manual_seed(0)
    model = network(name, quick)

    def told(record: EpochRecord) -> None:
        row["trained epochs"] = record.epoch
        row["validation, PGD-10"] = record.val_robust
        late = time.monotonic() - began > 1.3 * seconds
        if late and record.epoch < row["epochs"]:
            raise OutOfTime(f"{record.epoch} of {row['epochs']} epochs")

    plan = recipe(row["epochs"], device, quick)
    result = train(model, data, plan, THREAT, folder=folder, seed=0, on_epoch=told)
    row["trained epochs"] = row["epochs"]
    row["training seconds"] = round(sum(record.seconds for record in result.history), 1)
    return result.model.to(device).eval()


def measure(
    model: nn.Module, data: DataSplits, row: Row, attack: str, clock: Clock, count: int,
    part: int, folder: Path, write: Any,
) -> None:  # fmt: skip
    """Accuracy under one attack, `part` pictures at a time; what `row` holds is not done again."""
    known = row.setdefault(attack, {"pictures": 0, "clean": 0, "robust": 0, "unreliable": []})
    place = next(model.parameters()).device
    test = data.test.head(count)
    x, y = next(test.to(place).batches(len(test)))

    def told(done: int, total: int | None, stage: str) -> None:
        if clock.left() < 10:
            raise OutOfTime(f"{attack}: {known['pictures']} of {len(test)} pictures")

    while known["pictures"] < len(test):
        told(0, None, "")
        first = known["pictures"]
        spec: dict[str, Any] = {"name": attack}
        if attack.startswith("autoattack"):
            spec["folder"] = str(folder / f"{attack}-{first}")
        now = slice(first, first + part)
        found = evaluate(model, (x[now], y[now]), [spec], threat=THREAT, progress=told)
        known["pictures"] += found.n
        known["clean"] += round(found.clean * found.n)
        known["robust"] += round(found.worst * found.n)
        known["unreliable"] += [
            r for r in found.reliability.reasons if r not in known["unreliable"]
        ]
        write()


def table(rows: dict[str, Row], name: str) -> str:
    """The figures so far, as Markdown."""
    attacks = list(dict.fromkeys(key for row in rows.values() for key in row if _is(row[key])))
    lines = [f"Accuracy on {name}, L∞ 8/255; in brackets the number of test pictures.", ""]
    lines += ["| network | epochs | clean | " + " | ".join(attacks) + " | flags |"]
    lines += ["|---" * (len(attacks) + 4) + "|"]
    for network_name, row in rows.items():
        done = [row[key] for key in attacks if key in row and row[key]["pictures"]]
        clean = f"{done[0]['clean'] / done[0]['pictures']:.3f}" if done else ""
        cells = []
        for key in attacks:
            found = row.get(key, {"pictures": 0})
            n = found["pictures"]
            cells.append(f"{found['robust'] / n:.3f} ({n})" if n else "")
        flags = sorted({flag for one in done for flag in one["unreliable"]})
        epochs = f"{row.get('trained epochs', 0)} of {row.get('epochs', '?')}"
        state = ["not measured"] if not done else [f"UNRELIABLE: {flag}" for flag in flags]
        cells = [network_name, epochs, clean, *cells, "; ".join(state)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _is(value: Any) -> bool:
    return isinstance(value, dict) and "robust" in value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser, seconds=560)
    parser.add_argument("--archive", type=Path, help="cifar10-jpeg.tar.xz; none is digits")
    parser.add_argument("--networks", default="robnet-large,robnet-free,resnet18")
    parser.add_argument("--pictures", type=int, default=1000, help="test pictures")
    parser.add_argument("--attacks", default="pgd20,autoattack")
    parser.add_argument("--share", type=float, default=0.65, help="of the time, for training")
    args = parser.parse_args()
    if args.archive is None and not args.quick:
        parser.error("--archive is needed (without it, --quick takes digits)")
    names = list(filter(None, args.networks.split(",")))
    check_networks(names)
    if args.quick:
        args.pictures = min(args.pictures, 16)
    device, clock = device_of(args), Clock(args.seconds)
    results = Results(args.out / "figures.json", device, args)
    rows: dict[str, Row] = {name: {} for name in names}
    if results.path.is_file():  # go on
        before = json.loads(results.path.read_text(encoding="utf-8"))
        rows |= before.get("networks", {})  # other networks' figures stay in the file too
    data = pictures(args.archive)
    if args.quick:
        few, some = data.train.head(128), data.validation.head(16)
        data = dataclasses.replace(data, train=few, validation=some)

    def write() -> None:
        results.put("networks", rows)
        write_text(args.out / "figures.md", table(rows, data.name))

    write()
    results.put("recipe", {**RECIPE, "data": data.name, "seconds to read it": clock.used()})
    share = args.share * (clock.left()) / len(names)
    models: dict[str, nn.Module] = {}
    for name in names:
        print(f"training {name}", flush=True)
        try:
            folder = args.out / name
            models[name] = trained(name, data, rows[name], share, folder, device, args.quick)
        except OutOfTime as e:
            results.leave_out(f"{name}, training", f"{e}; the same command goes on")
        write()
    part = 8 if args.quick else _PART
    # Attack by attack, so that every network has the cheap one before any has the dear one.
    for attack in args.attacks.split(","):
        for number, (name, model) in enumerate(models.items()):
            print(f"{attack} on {name}", flush=True)
            # An equal share of what is left for those that are still to come.
            some = Clock(clock.left() / (len(models) - number))
            try:
                measure(
                    model, data, rows[name], attack, some, args.pictures, part,
                    args.out / name, write,
                )  # fmt: skip
            except OutOfTime as e:
                results.leave_out(name, f"{e}; the same command goes on")
            write()
    results.put("seconds of this command", round(clock.used(), 1))
    print((args.out / "figures.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    in_one_sentence(main)
