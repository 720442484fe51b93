"""``nni-robust bench attack``: speed side by side with torchattacks and the seeds' loops."""

from __future__ import annotations

import argparse
from typing import Any

from nni_robust.cli._arguments import add_json, positive, writable_folder
from nni_robust.cli._bench_output import show
from nni_robust.cli._console import say

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Measure attacks, robust evaluation and spectra side by side with torchattacks and with "
        "loops written like the seeds', on one thread. Ratios are the rival's time (or memory) "
        "divided by ours, so above 1 ours is faster. Into DIR go attack.csv and summary.csv."
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: none kept)")
    parser.add_argument("--cases", metavar="LIST", help="pgd,evaluate,spectrum,memory")
    parser.add_argument(
        "--networks", metavar="LIST", help="resnet18-w16,resnet18-w64,robnet-small,robnet-free"
    )
    parser.add_argument("--turns", type=positive, metavar="N", help="repetitions (default 6)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="of whole batches")
    parser.add_argument("--epochs", type=positive, metavar="N", help="of the trained network")
    parser.add_argument("--limit", type=positive, metavar="N", help="most test pictures")
    parser.add_argument(
        "--quick", action="store_true", help="smallest size: shows that it works, no more"
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    folder = writable_folder(args.out) if args.out else None
    from nni_robust.bench.attack import AttackBench, run_attack_bench, summary

    changes: dict[str, Any] = {}
    if args.quick:
        changes = {"networks": ("resnet18-w4",), "turns": 2, "batch_size": 4}
        changes |= {"epochs": 1, "limit": 32}
    for key in ("turns", "batch_size", "epochs", "limit"):
        if getattr(args, key) is not None:
            changes[key] = getattr(args, key)
    for key in ("cases", "networks"):
        if getattr(args, key) is not None:
            changes[key] = tuple(name.strip() for name in getattr(args, key).split(","))
    rows = run_attack_bench(AttackBench(**changes), say)
    show(args, "attack", folder, rows, summary(rows))
    return 0
