"""``nni-robust table``: the candidates of finished runs as a table to look up in."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import add_json, add_threads, set_threads
from nni_robust.cli._console import print_json, say
from nni_robust.flags import merge_flags

if TYPE_CHECKING:
    from nni_robust.tables import RowTable

__all__ = ["add_arguments", "execute"]

#: Unreliable rows that are named; all are in the JSON.
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Write the candidates of finished runs as JSON lines that the evaluator 'tabular' looks up "
        "in. Their stored networks are also attacked on the test split, for columns that no search "
        "sees. Several runs with other seeds give the mean of each architecture. Rows whose "
        "figures failed a check stay in, with its name, and are told."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--out", required=True, metavar="FILE", help="the table (JSON lines)")
    parser.add_argument(
        "--repeat",
        metavar="RUN",
        help="the same with another seed: its scores become columns that no search sees, and how "
        "well scores repeat is printed",
    )
    parser.add_argument(
        "--no-test", action="store_true", help="leave the columns of the test split out"
    )
    add_threads(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Write the table; print how well it repeats where there are several runs."""
    from nni_robust.analysis.statistics import spearman
    from nni_robust.tables import table_from_run, write_table

    set_threads(args)
    test: dict[str, dict[str, float]] = {}
    if not args.no_test:
        from nni_robust.experiments import score_on_test

        for run in args.runs:
            test |= score_on_test(run, report=say)
    again = table_from_run(args.repeat) if args.repeat else None
    table = table_from_run(args.runs, test=test, again=again)
    write_table(table, args.out)
    found: dict[str, object] = {"table": args.out, "rows": len(table), "columns": table.columns}
    if again is not None:
        shared = [key for key in table.rows if key in again.rows]
        scores = [[one.rows[key]["default"] for key in shared] for one in (table, again)]
        found["repeats"] = str(spearman(*scores))
    found["unreliable"] = _unreliable(table)
    if args.json:
        print_json(found)
    else:
        print(f"{args.out}: {len(table)} architectures, columns {', '.join(table.columns)}")
        if again is not None:
            print(f"scores of the repeated run: {found['repeats']}")
        for line in _warnings(table):
            print(line)
    return 0


def _unreliable(table: RowTable) -> list[dict[str, Any]]:
    """The rows of which a check failed, best first; their place by the score, from 1."""
    order = sorted(table.rows, key=lambda key: -table.rows[key]["default"])
    return [
        {"sample": table.sample(key), "place": place, "failed": list(failed)}
        for place, key in enumerate(order, 1)
        if (failed := merge_flags(table.flags.get(key, ())))
    ]


def _warnings(table: RowTable) -> list[str]:
    """One line on rows that are unreliable, one on those that nobody checked."""
    lines, rows = [], _unreliable(table)
    if rows:
        shown = [f"number {row['place']} ({', '.join(row['failed'])})" for row in rows[:_SHOWN]]
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        lines.append(
            f"UNRELIABLE: {len(rows)} of {len(table)} rows failed a check; by their score they are "
            f"{', '.join(shown)}{more}; they are in the table, with `reliability`, and a search in "
            "it may end there"
        )
    unknown = len(table) - sum(flags.search is not None for flags in table.flags.values())
    if unknown:
        lines.append(f"of {unknown} of {len(table)} rows the run has no reliability checks")
    return lines
