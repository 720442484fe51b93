"""``nni-robust report``: the self-contained HTML page of a run."""

from __future__ import annotations

import argparse

from nni_robust.cli._arguments import add_json
from nni_robust.cli._console import print_json

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Write report.html into each run folder, from the records that lie there; nothing is "
        "trained or attacked. Several folders give one report each."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Write the reports; print where they are, and the findings of a study."""
    from nni_robust.report import build_report, read_findings

    paths = [build_report(run) for run in args.runs]
    if args.json:
        print_json({"reports": [str(path) for path in paths]})
    else:
        for run, path in zip(args.runs, paths, strict=True):
            print(path)
            for sentence in read_findings(run):
                print(f"  {sentence}")
    return 0
