"""What benchmarks do with their figures: files, JSON, or a table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_robust.cli._console import print_json, print_table

__all__ = ["show"]


def show(
    args: argparse.Namespace,
    name: str,
    folder: Path | None,
    rows: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
) -> None:
    """Write ``NAME.csv`` and ``summary.csv`` into a folder, if there is one, and print the summary.

    Parameters
    ----------
    args
        With ``json``.
    name
        The benchmark's.
    folder
        Where the files go.
    rows, summary
        The measurements, and what they come to.
    """
    from nni_robust.bench import write_rows

    if folder is not None:
        write_rows(folder / f"{name}.csv", rows)
        write_rows(folder / "summary.csv", summary)
    if args.json:
        print_json({"summary": summary, "rows": rows})
    else:
        columns = list(dict.fromkeys(key for entry in summary for key in entry))
        print_table(columns, [[str(entry.get(key, "")) for key in columns] for entry in summary])
