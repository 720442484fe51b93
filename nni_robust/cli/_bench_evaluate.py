"""``nni-robust bench evaluate``: robust accuracy with early exit against fixed steps."""

from __future__ import annotations

import argparse

from nni_robust.cli._arguments import positive
from nni_robust.cli._bench_attack import add_common, execute_cases

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Measure robust accuracy under PGD-20 of networks trained on digits: ours leaves pictures "
        "alone once they are misclassified; the rivals, torchattacks among them, attack every "
        "picture for all steps. Ratios are the rival's time divided by ours. Into DIR go "
        "evaluate.csv and summary.csv."
    )
    add_common(parser)
    parser.add_argument("--epochs", type=positive, metavar="N", help="of the trained network")
    parser.add_argument("--limit", type=positive, metavar="N", help="most test pictures")


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    return execute_cases(args, "evaluate", ("evaluate",))
