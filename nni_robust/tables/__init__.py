"""Tables of networks that somebody trained already: a look-up instead of a training.

A table answers what an architecture scores, so that strategies can be compared over many seeds in
minutes. Readers of published tables, of finished runs, and a table made from a formula::

    from nni_robust.tables import open_table

    table = open_table("synthetic:wrn")       # a formula with a known optimum
    table = open_table("wrn-digits")          # 216 networks, really trained; comes with the package
    table = open_table("cifar10.jsonl")       # NARes, from its authors' release
    table.row(sample, task)                   # {"clean": 0.78, "pgd@8/255": 0.38, ...}

No file of another author is in the package; :func:`open_table` says where to get it.
"""

from __future__ import annotations

from ._base import RowFlags, RowTable, Table, deciding_column, is_test
from .nares import NaresTable
from .opening import TaskTables, open_table
from .records import read_records_table, table_from_run, write_table
from .robbench import RobBenchTable, cell_class, cell_string
from .synthetic import SyntheticTable

__all__ = [
    "NaresTable",
    "RobBenchTable",
    "RowFlags",
    "RowTable",
    "SyntheticTable",
    "Table",
    "TaskTables",
    "cell_class",
    "cell_string",
    "deciding_column",
    "is_test",
    "open_table",
    "read_records_table",
    "table_from_run",
    "write_table",
]
