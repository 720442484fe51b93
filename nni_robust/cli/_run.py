"""``nni-robust run``: a whole search, as an experiment file says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nni_robust.cli._arguments import add_json, add_overrides, port_number
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
    add_overrides(parser, "setting of the file, such as strategy.candidates=4")
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
        print_json(_outcome(folder))
    else:
        _summary(folder)
    return 0


def _outcome(folder: Path) -> dict[str, Any]:
    """What a program wants to know of a finished run."""
    from nni_robust.report import read_findings
    from nni_robust.store import read_json

    final = folder / "final.json"
    return {
        "folder": str(folder),
        "best": str(folder / "best.yaml"),
        "report": str(folder / "report.html"),
        "findings": read_findings(folder),
        "final": read_json(final) if final.is_file() else None,
    }


def _summary(folder: Path) -> None:
    """Tables of the candidates and of the final networks, and where everything lies."""
    from rich.console import Console

    from nni_robust.report import candidates_table, final_table, read_findings
    from nni_robust.store import read_json, read_records

    # Where nobody watches, lines may be as long as the tables need.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(candidates_table(read_records(folder / "candidates.jsonl"), limit=20))
    if (folder / "final.json").is_file():
        console.print(final_table(read_json(folder / "final.json")))
    for sentence in read_findings(folder):
        print(sentence)
    for title, name in (
        ("best architecture", "best.yaml"),
        ("its weights", "best.safetensors"),
        ("report", "report.html"),
    ):
        if (folder / name).is_file():
            print(f"{title}: {folder / name}", flush=True)


def _line(text: str) -> None:
    print(text, flush=True)
