"""``nni-robust bench train-step``: one adversarial training step, against the seeds' loops."""

from __future__ import annotations

import argparse
from typing import Any

from nni_robust.cli._arguments import add_json, positive, writable_folder
from nni_robust.cli._bench_output import show
from nni_robust.cli._console import say
from nni_robust.errors import UserError

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Measure whole adversarial training steps (attack and step of SGD) side by side with loops "
        "written like the seeds', on one thread. Ratios are the rival's time divided by ours, so "
        "above 1 ours is faster. Into DIR go train-step.csv and summary.csv."
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: none kept)")
    parser.add_argument(
        "--networks",
        metavar="LIST",
        help="robnet-large,robnet-free,robnet-large-c12,wsrnet-basic,wsrnet-basic-c16,"
        "resnet18-w16; NAME@N for batches of N pictures",
    )
    parser.add_argument("--steps", metavar="LIST", help="steps of the attacks (default 7,10)")
    parser.add_argument("--turns", type=positive, metavar="N", help="repetitions (default 5)")
    parser.add_argument(
        "--quick", action="store_true", help="smallest size: shows that it works, no more"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also ours through torch.compile; needs g++"
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    folder = writable_folder(args.out) if args.out else None
    from nni_robust.bench.train_step import TrainStepBench, run_train_step_bench, summary

    changes: dict[str, Any] = {"compile": args.compile}
    if args.quick:
        changes |= {"networks": ("resnet18-w16@2",), "turns": 2, "steps": (3,)}
    if args.turns is not None:
        changes["turns"] = args.turns
    if args.networks is not None:
        changes["networks"] = tuple(name.strip() for name in args.networks.split(","))
    if args.steps is not None:
        try:
            changes["steps"] = tuple(int(number) for number in args.steps.split(","))
        except ValueError:
            raise UserError(
                f"--steps: '{args.steps}' is not allowed; whole numbers such as 7,10 are"
            ) from None
    rows = run_train_step_bench(TrainStepBench(**changes), say)
    show(args, "train-step", folder, rows, summary(rows))
    return 0
