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
        "PGD on whole batches side by side with torchattacks and the seeds' loops",
    ),
    "evaluate": (
        "nni_robust.cli._bench_evaluate",
        "robust accuracy with early exit side by side with fixed steps and torchattacks",
    ),
    "spectrum": (
        "nni_robust.cli._bench_spectrum",
        "eight strengths in one pass side by side with eight attacks",
    ),
    "search": (
        "nni_robust.cli._bench_search",
        "a one-shot search on a small space side by side with a plain one",
    ),
    "estimator": (
        "nni_robust.cli._bench_estimator",
        "noise estimators against real noise and against continuing the attack",
    ),
    "overhead": (
        "nni_robust.cli._bench_overhead",
        "seconds that a trial costs before it does anything, against NNI's default",
    ),
    "train-step": (
        "nni_robust.cli._bench_train_step",
        "one adversarial training step, side by side with steps written like the seeds'",
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
