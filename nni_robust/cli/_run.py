"""``nni-robust run``: a whole search, as an experiment file says."""

from __future__ import annotations

import argparse
from pathlib import Path

from nni_robust.cli._arguments import add_json, port_number
from nni_robust.cli._console import print_json, say

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Run an experiment: search, retrain the best architecture, attack it, write the report. "
        "NNI's web UI shows the trials while it runs. A run that was interrupted or killed goes on "
        "with --resume and repeats no finished trial."
    )
    parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="name of a shipped experiment (quickstart), a YAML file, or, with --resume, a run "
        "folder",
    )
    parser.add_argument("--out", metavar="DIR", help="run folder (default: one below ./runs)")
    parser.add_argument("--resume", action="store_true", help="continue the run in its folder")
    parser.add_argument("--port", type=port_number, metavar="N", help="port of the web UI")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting of the file, such as strategy.candidates=4; may be repeated",
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the experiment; the lines about its progress go to standard error with ``--json``."""
    from nni_robust.experiments import run_experiment

    folder: Path = run_experiment(
        args.experiment,
        out=args.out,
        resume=args.resume,
        port=args.port,
        overrides=args.overrides,
        report=say if args.json else _line,
    )
    if args.json:
        from nni_robust.store import read_json

        print_json(
            {
                "folder": str(folder),
                "report": str(folder / "report.html"),
                "final": read_json(folder / "final.json"),
            }
        )
    return 0


def _line(text: str) -> None:
    print(text, flush=True)
