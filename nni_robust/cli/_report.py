"""``nni-robust report``: the self-contained HTML page of a run, and of several runs compared."""

from __future__ import annotations

import argparse

from nni_robust.cli._arguments import add_json
from nni_robust.cli._console import print_json

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Write report.html into each run folder, from the records that lie there; nothing is "
        "trained or attacked. Several folders also give one page that compares them: it says "
        "first what differs in their settings, and warns where data, threat, recipe or test differ."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="HTML file to write: the report of one run (default: RUN/report.html), or the "
        "comparison of several (default: comparison.html in the folder that holds them all)",
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Write the reports; print where they are, and the findings of a study."""
    from nni_robust.report import build_comparison, build_report, read_findings
    from nni_robust.report.html import read_runs

    several = len(args.runs) > 1
    if several:
        read_runs(args.runs)  # a wrong one is told before the first report is written
    paths = [build_report(run, None if several else args.out) for run in args.runs]
    comparison = build_comparison(args.runs, args.out) if several else None
    if args.json:
        found = {"reports": [str(path) for path in paths]}
        print_json({**found, "comparison": str(comparison)} if several else found)
        return 0
    for run, path in zip(args.runs, paths, strict=True):
        print(path)
        for sentence in read_findings(run):
            print(f"  {sentence}")
    if comparison is not None:
        print(comparison)
    return 0
