"""Benchmarks: measurements of the library itself, with the machine they were made on.

Each gives rows of plain values, one per measurement; ``nni-robust bench NAME`` writes them as CSV.
"""

from __future__ import annotations

from nni_robust.bench._rows import Row, machine, spread, write_rows
from nni_robust.bench.estimator import EstimatorBench, default_networks, run_estimator_bench

__all__ = [
    "EstimatorBench",
    "Row",
    "default_networks",
    "machine",
    "run_estimator_bench",
    "spread",
    "write_rows",
]
