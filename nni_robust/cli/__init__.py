"""The ``nni-robust`` command: one private module per verb, imported only when that verb runs."""

from __future__ import annotations

from nni_robust.cli._main import main

__all__ = ["main"]
