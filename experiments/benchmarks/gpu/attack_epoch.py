"""How long an epoch of PGD-10 training takes on a GPU, and what share of the card it uses.

``python experiments/benchmarks/gpu/attack_epoch.py --out DIR``: one command of at most ten minutes.

1. The card's matrix rate: a bf16 product of 8192 x 8192 random matrices.
2. ResNet-18: one step of PGD-10 training (attack and SGD) on pictures that lie on the device; ours
   in several forms and the float32 loop around torchattacks, in turns of alternating order. An
   epoch is 50,000 pictures.
3. PGD-10 by itself on RobNet-large and WRN-28-10: arithmetic (two forward passes' worth for each
   gradient step) a second, as a share of the matrix rate.

Everything is written into DIR/attack_epoch.json as it is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from _common import (
    Clock,
    Results,
    add_arguments,
    check_networks,
    device_of,
    finish,
    in_one_sentence,
    network,
)

from nni_robust.attacks import attack
from nni_robust.bench._rivals import torchattacks_pgd
from nni_robust.cost import measure_cost

EPS, STEPS, EPOCH = 8 / 255, 10, 50_000
BF16: dict[str, Any] = {"precision": "bf16", "channels_last": True}
#: Contender -> settings of our attack, and whether training computes in bf16; None is torchattacks.
FORMS: dict[str, tuple[dict[str, Any], bool] | None] = {
    "torchattacks, float32": None,
    "ours, float32": ({}, False),
    "ours, bf16": (BF16, True),
    "ours, bf16, fold": ({**BF16, "fold": True}, True),
    "ours, bf16, fold, graph": ({**BF16, "fold": True, "cuda_graph": "auto"}, True),
    "ours, bf16, fold, compiled": ({**BF16, "fold": True, "compile": True}, True),
}
RIVAL = "torchattacks, float32"


def matrix_rate(device: torch.device, quick: bool) -> float:
    """Floating point operations a second of a bf16 matrix product."""
    n, dtype = (256, torch.float32) if quick else (8192, torch.bfloat16)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    finish(device)
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    finish(device)
    return 10 * 2 * n**3 / (time.perf_counter() - began)


def seconds(run: Callable[[], object], device: torch.device, times: int) -> float:
    """Mean wall time."""
    finish(device)
    began = time.perf_counter()
    for _ in range(times):
        run()
    finish(device)
    return (time.perf_counter() - began) / times


def make_attack(form: tuple[dict[str, Any], bool] | None) -> Callable[..., Tensor]:
    if form is None:
        return lambda m, x, y: torchattacks_pgd(m, x, y, eps=EPS, step=EPS / 4, steps=STEPS)
    return attack("pgd", eps=EPS, steps=STEPS, **form[0])


def training_step(
    model: nn.Module, form: tuple[dict[str, Any], bool] | None, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    """Attack a batch of pictures that lie on the device as bytes, and train on what comes out."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    run, half = make_attack(form), form is not None and form[1]
    kind = images.device.type

    def step() -> None:
        x = images.float().div_(255)
        if half:
            x = x.contiguous(memory_format=torch.channels_last)
        model.eval()
        adv = run(model, x, labels)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(adv).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def epoch(results: Results, clock: Clock, device: torch.device, args: argparse.Namespace) -> None:
    """Part 2."""
    images = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (args.batch,), device=device)
    steps: dict[str, Callable[[], None]] = {}
    for name, form in FORMS.items():
        if clock.left() < 0.5 * clock.budget or (args.quick and "compiled" in name):
            results.leave_out(f"resnet18, {name}", "time" if not args.quick else "quick")
            continue
        torch.manual_seed(0)
        model = network("resnet18", args.quick).to(device)
        if form is not None and form[1]:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = training_step(model, form, images, labels)
        try:
            seconds(step, device, 2)  # compiles, records, chooses kernels
        except Exception as e:  # one form that does not work must not cost the others
            results.leave_out(f"resnet18, {name}", f"{type(e).__name__}: {e}"[:300])
            continue
        steps[name] = step
    turns: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.turns):
        names = list(steps)
        for name in names if turn % 2 == 0 else names[::-1]:
            turns[name].append(seconds(steps[name], device, args.batches))
        found = {name: _epoch_figures(name, turns, args.batch) for name in turns if turns[name]}
        results.put("resnet18, PGD-10 training", found)
        if clock.left() < 0.3 * clock.budget and turn:
            results.leave_out("resnet18", f"turns after {turn + 1}: time")
            break


def _epoch_figures(name: str, turns: dict[str, list[float]], batch: int) -> dict[str, Any]:
    epochs = [one * EPOCH / batch for one in turns[name]]
    found: dict[str, Any] = {
        "seconds an epoch": round(statistics.median(epochs), 3),
        "range": [round(min(epochs), 3), round(max(epochs), 3)],
        "turns": len(epochs),
    }
    if turns.get(RIVAL) and name != RIVAL:
        ratios = [r / o for r, o in zip(turns[RIVAL], turns[name], strict=False)]
        found["times faster than torchattacks"] = round(statistics.median(ratios), 2)
        found["its range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return found


def share(
    name: str, rate: float, results: Results, clock: Clock, device: torch.device,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    """Part 3."""
    batch = args.batch
    model = network(name, args.quick).eval()
    macs = measure_cost(model).macs
    model = model.to(device)
    x, y = torch.rand(batch, 3, 32, 32, device=device), torch.zeros(batch, dtype=torch.int64)
    y = y.to(device)
    found: dict[str, Any] = {"macs of a picture": macs, "batch": batch}
    for form, settings in FORMS.items():
        if settings is None or "compiled" in form:
            continue
        if clock.left() < 20 and not args.quick:
            results.leave_out(f"{name}, {form}", "time")
            continue
        run = make_attack(settings)
        try:
            seconds(lambda run=run: run(model, x, y), device, 1)  # type: ignore[misc]
            taken = [
                seconds(lambda run=run: run(model, x, y), device, 1)  # type: ignore[misc]
                for _ in range(args.turns)
            ]
        except Exception as e:
            results.leave_out(f"{name}, {form}", f"{type(e).__name__}: {e}"[:300])
            continue
        # A gradient step is a forward and a backward pass to the picture, each 2 FLOP for a MAC.
        flop = STEPS * 2 * 2 * macs * batch
        middle = statistics.median(taken)
        found[form] = {
            "seconds": round(middle, 4),
            "range": [round(min(taken), 4), round(max(taken), 4)],
            "TFLOP/s": round(flop / middle / 1e12, 2),
            "share of the matrix rate": round(flop / middle / rate, 4),
        }
        results.put(f"{name}, PGD-10", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser, seconds=540)
    parser.add_argument("--batch", type=int, help="pictures at a time (128)")
    parser.add_argument("--turns", type=int, help="repetitions (5)")
    parser.add_argument("--batches", type=int, help="steps in each turn (20)")
    parser.add_argument("--networks", default="robnet-large,wrn-28-10", help="for part 3")
    args = parser.parse_args()
    small = (4, 2, 1) if args.quick else (128, 5, 20)
    for key, value in zip(("batch", "turns", "batches"), small, strict=True):
        if getattr(args, key) is None:
            setattr(args, key, value)
    names = list(filter(None, args.networks.split(",")))
    check_networks(names)
    device, clock = device_of(args), Clock(args.seconds)
    if not args.quick:
        torch.backends.cudnn.benchmark = True
    results = Results(args.out / "attack_epoch.json", device, args)
    rate = matrix_rate(device, args.quick)
    results.put("matrix rate, TFLOP/s", round(rate / 1e12, 3))
    epoch(results, clock, device, args)
    for name in names:
        share(name, rate, results, clock, device, args)
    results.put("seconds of this command", round(clock.used(), 1))
    print(results.path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    in_one_sentence(main)
