"""``nni-robust bench attack``: speed side by side with torchattacks and the seeds' loops.

``bench evaluate`` and ``bench spectrum`` are other cases of the same benchmark.
"""

from __future__ import annotations

import argparse
from typing import Any

from nni_robust.cli._arguments import add_json, positive, writable_folder
from nni_robust.cli._bench_output import show
from nni_robust.cli._console import say
from nni_robust.errors import UserError

__all__ = ["add_arguments", "add_common", "execute", "execute_cases"]

_CASES = ("pgd", "memory")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Measure PGD-10 on whole batches, and the memory that it takes, side by side with "
        "torchattacks and with loops written like the seeds', on one thread. Ratios are the "
        "rival's time (or memory) divided by ours, so above 1 ours is faster. Into DIR go "
        "attack.csv and summary.csv."
    )
    add_common(parser)
    parser.add_argument("--cases", metavar="LIST", help=",".join(_CASES))
    parser.add_argument(
        "--networks", metavar="LIST", help="resnet18-w16,resnet18-w64,robnet-small,robnet-free"
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="pictures at a time")
    parser.add_argument(
        "--compile", action="store_true", help="also ours through torch.compile; needs g++"
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """What all cases have."""
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: none kept)")
    parser.add_argument("--turns", type=positive, metavar="N", help="repetitions (default 6)")
    parser.add_argument(
        "--quick", action="store_true", help="smallest size: shows that it works, no more"
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    cases = _CASES if args.cases is None else names(args.cases)
    for name in cases:
        if name not in _CASES:
            other = {"evaluate", "spectrum"} & {name}
            raise UserError(
                f"cases: '{name}' is "
                + (f"'nni-robust bench {name}'" if other else "not allowed")
                + f"; allowed: {', '.join(_CASES)}"
            )
    return execute_cases(args, "attack", cases)


def execute_cases(args: argparse.Namespace, name: str, cases: tuple[str, ...]) -> int:
    """Run some cases of the benchmark; write ``NAME.csv`` and ``summary.csv``, print."""
    folder = writable_folder(args.out) if args.out else None
    from nni_robust.bench.attack import AttackBench, run_attack_bench, summary

    changes: dict[str, Any] = {"cases": cases}
    if args.quick:
        changes |= {"networks": ("resnet18-w4",), "turns": 2, "batch_size": 4}
        changes |= {"epochs": 1, "limit": 32}
    for key in ("turns", "batch_size", "epochs", "limit", "compile"):
        if getattr(args, key, None) is not None:
            changes[key] = getattr(args, key)
    if getattr(args, "networks", None) is not None:
        changes["networks"] = names(args.networks)
    rows = run_attack_bench(AttackBench(**changes), say)
    show(args, name, folder, rows, summary(rows))
    return 0


def names(text: str) -> tuple[str, ...]:
    """``"a, b"`` -> ``("a", "b")``."""
    return tuple(name.strip() for name in text.split(","))
