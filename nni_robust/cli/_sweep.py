"""``nni-robust sweep``: one experiment under every combination of some settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from nni_robust.cli._arguments import add_json
from nni_robust.cli._console import print_json, say
from nni_robust.errors import UserError

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Run a base experiment under every combination of the values that a sweep file lists, "
        "seeds among them, and write one table of all and one of means and standard deviations. "
        "Each run has a folder of its own. A sweep that was interrupted or killed goes on with "
        "--resume and repeats nothing that is finished."
    )
    parser.add_argument(
        "sweep", metavar="SWEEP", help="name of a shipped sweep, or path of a sweep file (YAML)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on in that folder")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=A,B",
        help="run only these values of an axis now, such as seed=0; may be repeated",
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the sweep; 1 if a run failed."""
    from nni_robust.experiments.sweep import run_sweep

    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} is not allowed; a whole number >= 1 is")
    only = {}
    for text in args.only:
        axis, equals, labels = text.partition("=")
        if not equals:
            raise UserError(f"--only {text!r} is not allowed; AXIS=VALUE,VALUE is")
        only[axis] = labels.split(",")
    folder, rows = run_sweep(
        args.sweep,
        out=args.out,
        resume=args.resume,
        jobs=args.jobs,
        only=only,
        report=say if args.json else _line,
    )
    failed = [row for row in rows if row["status"] not in ("finished", "waiting")]
    if args.json:
        print_json({"folder": str(folder), "runs": rows})
    else:
        for name in ("table.csv", "summary.csv", "comparison.csv", "comparison.svg"):
            if (Path(folder) / name).is_file():
                print(f"{name.partition('.')[0]}: {folder / name}", flush=True)
        if failed:
            print(f"{len(failed)} of {len(rows)} runs failed; see the column 'status'")
    return 1 if failed else 0


def _line(text: str) -> None:
    print(text, flush=True)
