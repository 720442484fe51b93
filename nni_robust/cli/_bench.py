"""``nni-robust bench``: measure the library on this machine.

A benchmark is a module with ``add_arguments(parser)`` and ``execute(args)``, named in `BENCHES`.
"""

from __future__ import annotations

import argparse
from importlib import import_module

__all__ = ["BENCHES", "add_arguments", "execute"]

#: Name -> (module, one line for ``nni-robust bench --help``).
BENCHES = {
    "attack": (
        "nni_robust.cli._bench_attack",
        "attacks and robust evaluation side by side with torchattacks and the seeds' loops",
    ),
    "estimator": (
        "nni_robust.cli._bench_estimator",
        "noise estimators against real noise and against continuing the attack",
    ),
    "overhead": (
        "nni_robust.cli._bench_overhead",
        "seconds that a trial costs before it does anything, against NNI's default",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command per benchmark."""
    parser.description = "Measure the library on this machine and write the figures as CSV."
    benches = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    for name, (module, summary) in BENCHES.items():
        import_module(module).add_arguments(benches.add_parser(name, help=summary))


def execute(args: argparse.Namespace) -> int:
    """Run the benchmark that was asked for."""
    code: int = import_module(BENCHES[args.bench][0]).execute(args)
    return code
