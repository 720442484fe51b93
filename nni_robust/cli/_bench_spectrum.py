"""``nni-robust bench spectrum``: eight strengths in one pass against eight attacks."""

from __future__ import annotations

import argparse

from nni_robust.cli._arguments import positive
from nni_robust.cli._bench_attack import add_common, execute_cases

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Measure robust accuracy at eight strengths in one pass against eight attacks, those of "
        "torchattacks among them, on a network trained on digits. Ratios are the rival's time "
        "divided by ours. Into DIR go spectrum.csv and summary.csv."
    )
    add_common(parser)
    parser.add_argument("--epochs", type=positive, metavar="N", help="of the trained network")
    parser.add_argument("--limit", type=positive, metavar="N", help="most test pictures")


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    return execute_cases(args, "spectrum", ("spectrum",))
