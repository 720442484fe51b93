"""``nni-robust bench search``: a one-shot search side by side with a plain one."""

from __future__ import annotations

import argparse
from typing import Any

from nni_robust.cli._arguments import positive, writable_folder
from nni_robust.cli._bench_attack import add_common
from nni_robust.cli._bench_output import show
from nni_robust.cli._console import say

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Measure one epoch of a robust supernet and the scoring of candidates with its weights, on "
        "RobNet cells and digits, side by side with loops written like the seeds' and, for scores, "
        "with torchattacks. NNI plays no part here: see bench overhead. Ratios are the rival's "
        "time divided by ours. Into DIR go search.csv and summary.csv."
    )
    add_common(parser)
    parser.add_argument("--candidates", type=positive, metavar="N", help="scored in each turn")
    parser.add_argument("--epochs", type=positive, metavar="N", help="of the supernet before")
    parser.add_argument("--channels", type=positive, metavar="N", help="of the first cell")
    parser.add_argument("--cells", type=positive, metavar="N", help="of each network")
    parser.add_argument("--pictures", type=positive, metavar="N", help="most pictures of each kind")


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    folder = writable_folder(args.out) if args.out else None
    from nni_robust.bench.search import SearchBench, run_search_bench, summary

    changes: dict[str, Any] = {}
    if args.quick:
        changes = {"channels": 4, "cells": 3, "epochs": 1, "candidates": 2}
        changes |= {"pictures": 64, "turns": 2}
    for key in ("turns", "candidates", "epochs", "channels", "cells", "pictures"):
        if getattr(args, key) is not None:
            changes[key] = getattr(args, key)
    rows = run_search_bench(SearchBench(**changes), say)
    show(args, "search", folder, rows, summary(rows))
    return 0
