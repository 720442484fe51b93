"""Rows of a benchmark: where they were measured, how they are written, how they are summed up."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_robust import __version__
from nni_robust.store import write_text

__all__ = ["Row", "machine", "one_thread", "spread", "write_rows"]

#: One measurement: plain values by column.
Row = dict[str, Any]


def machine() -> Row:
    """Processor, threads and versions, for every row: a figure without them says nothing."""
    import torch

    return {
        "nni_robust": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


@contextlib.contextmanager
def one_thread() -> Iterator[Row]:
    """Measure on one thread; gives what every row says of the machine, and the priority."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield {**machine(), "nice": os.nice(0)}
    finally:
        torch.set_num_threads(threads)


def _processor() -> str:
    """The processor's name; Linux has it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV in one step; the columns are those of the first row, then new ones."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; one value has a deviation of 0."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
