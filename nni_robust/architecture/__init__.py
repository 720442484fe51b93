"""Architectures as plain data, the zoo of published ones, and what a search space must offer."""

from __future__ import annotations

from nni_robust.architecture._architecture import FORMAT, Architecture
from nni_robust.architecture._zoo import list_architectures, load_architecture
from nni_robust.architecture.graph import CellGraph
from nni_robust.architecture.space import Space

__all__ = [
    "FORMAT",
    "Architecture",
    "CellGraph",
    "Space",
    "list_architectures",
    "load_architecture",
]
