"""``nni-robust bench overhead``: seconds that a trial costs before it does anything."""

from __future__ import annotations

import argparse

from nni_robust.cli._arguments import add_json, positive, writable_folder
from nni_robust.cli._bench_output import show
from nni_robust.cli._console import say

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Measure, on NNI's own experiment class and on ours in turns, the seconds from submitting "
        "a model to the evaluator's first line, and what each further candidate costs: with trials "
        "that do nothing, and with candidates that inherit a supernet's weights. Into DIR go "
        "overhead.csv and summary.csv. It takes about 20 minutes on two cores, --quick half a "
        "minute; two or three times as long on a busy machine. Ctrl-C and SIGTERM stop NNI, too."
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: none kept)")
    parser.add_argument("--trials", type=positive, metavar="N", help="of each experiment")
    parser.add_argument("--concurrency", type=positive, metavar="N", help="trials at a time")
    parser.add_argument("--rounds", type=positive, metavar="N", help="repetitions")
    parser.add_argument("--workloads", metavar="LIST", help="empty,supernet")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="half a minute: three trials that do nothing, in NNI's class and in ours; shows that "
        "it works, no more",
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    folder = writable_folder(args.out) if args.out else None
    from nni_robust.bench.overhead import Overhead, run_overhead_bench, summary

    given = {key: getattr(args, key) for key in ("trials", "concurrency", "rounds")}
    changes = {key: value for key, value in given.items() if value is not None}
    if args.workloads is not None:
        changes["workloads"] = tuple(args.workloads.split(","))
    if args.quick:
        least = max(3, changes.get("concurrency", 2) + 1)
        quick = {"trials": least, "rounds": 1, "workloads": ("empty",)}
        changes = {**quick, "variants": ("nni", "nni-robust"), **changes}
    rows = run_overhead_bench(Overhead(**changes), say)
    show(args, "overhead", folder, rows, summary(rows))
    return 0
