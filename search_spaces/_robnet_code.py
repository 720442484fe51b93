"""The RobNet cell code: 14 edges, each without operation, convolution, identity, or both.

Guo et al., "When NAS Meets Robustness", CVPR 2020 (arXiv 1911.10695), sections 3.1-3.4.

A cell has two inputs (node 0 = output of cell k-2, node 1 = output of cell k-1) and four inner
nodes (2 to 5). Every inner node takes all earlier nodes: 14 edges. Each edge has two bits, identity
and convolution, so a cell has 28 bits. A cell is written as 14 digits, one per edge in the order of
:data:`EDGES`; a digit is ``2 * identity + convolution``. The authors' repository writes the same as
two-character tokens, identity first (``"01"`` is our ``"1"``).

An architecture is one such string (all cells share it) or one string per cell (cell-free). The
statistics of findings 1 and 2 of the paper take either form. Nothing here needs PyTorch or NNI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nni_robust.errors import UserError

__all__ = [
    "DIRECT_EDGES",
    "EDGES",
    "INPUT_EDGES",
    "STATES",
    "Code",
    "bits",
    "check_code",
    "code_to_sample",
    "count_convs",
    "count_direct_convs",
    "count_identities",
    "density",
    "direct_share",
    "edge_label",
    "sample_to_code",
]

#: One string for all cells, or one string per cell.
Code = str | list[str]

#: (source node, target node) of edge 0 to 13.
EDGES = tuple((source, target) for target in range(2, 6) for source in range(target))

#: What an edge may hold; the index is the digit of the code.
STATES = ("none", "conv", "skip", "conv+skip")

#: Edges from a node to the next one. Both edges into the first inner node count, which the paper
#: does not say, but its figure 6(b) shows fractions that only five direct edges can give.
DIRECT_EDGES = (0, 1, 4, 8, 13)

#: Edges whose source is an input of the cell; they have stride 2 in a reduction cell.
INPUT_EDGES = tuple(index for index, (source, _) in enumerate(EDGES) if source < 2)

_LABEL = re.compile(r"cell(\d*)/(\d)-(\d)")


def check_code(code: str | Sequence[str], cells: int | None = None) -> list[str]:
    """Return the code as a list: one string (shared by all cells) or one per cell.

    Parameters
    ----------
    code
        A string, or a sequence of strings.
    cells
        Number of cells of the network; None accepts any number of strings.

    Raises
    ------
    UserError
        If a string is not 14 digits of 0 to 3, or there are neither one nor `cells` strings.
    """
    strings: list[Any] = list(code) if isinstance(code, (list, tuple)) else [code]
    for index, text in enumerate(strings):
        where = f"RobNet code of cell {index}" if len(strings) > 1 else "RobNet code"
        if not isinstance(text, str):
            raise UserError(
                f"{where}: {text!r} is not allowed; a string of {len(EDGES)} digits is "
                "(quote it in YAML)"
            )
        if len(text) != len(EDGES):
            raise UserError(f"{where}: {text!r} has {len(text)} digits; {len(EDGES)} are needed")
        wrong = next((character for character in text if character not in "0123"), None)
        if wrong is not None:
            raise UserError(
                f"{where}: {text!r} contains {wrong!r}; allowed digits: 0 (none), 1 (conv), "
                "2 (skip), 3 (conv+skip)"
            )
    if not strings or (cells is not None and len(strings) not in (1, cells)):
        raise UserError(
            f"RobNet code: {len(strings)} strings are not allowed for {cells or 'any number of'} "
            "cells; one (shared by all) or one per cell is"
        )
    return strings


def edge_label(cell: int | None, edge: int) -> str:
    """Label of an edge's choice: ``"cell/0-2"`` (cell None: shared) or ``"cell06/0-2"``."""
    source, target = EDGES[edge]
    return f"cell{'' if cell is None else f'{cell:02d}'}/{source}-{target}"


def code_to_sample(code: str | Sequence[str], *, cells: int, cell_free: bool) -> dict[str, str]:
    """NNI sample (label to state) of a code.

    Parameters
    ----------
    code
        See :func:`check_code`.
    cells, cell_free
        Of the space that the sample is for.

    Raises
    ------
    UserError
        If the code is malformed or is of the other kind of space.
    """
    strings = check_code(code, cells)
    if len(strings) != (cells if cell_free else 1):
        kind = "one string per cell" if cell_free else "one string for all cells"
        raise UserError(
            f"RobNet code: {len(strings)} strings are not allowed for a space with "
            f"cell_free={cell_free} and {cells} cells; {kind} is"
        )
    return {
        edge_label(cell if cell_free else None, edge): STATES[int(digit)]
        for cell, text in enumerate(strings)
        for edge, digit in enumerate(text)
    }


def sample_to_code(sample: Mapping[str, Any]) -> Code:
    """Code of an NNI sample; inverse of :func:`code_to_sample`.

    Labels that are no RobNet edges (a choice of the evaluator, say) are passed over.

    Raises
    ------
    UserError
        If an edge is missing, or its value is none of :data:`STATES`.
    """
    by_cell: dict[str, dict[int, str]] = {}
    for label, state in sample.items():
        match = _LABEL.fullmatch(label)
        edge = (int(match[2]), int(match[3])) if match else None
        if match is None or edge not in EDGES:
            continue
        if state not in STATES:
            raise UserError(f"{label}: {state!r} is not allowed; allowed: {', '.join(STATES)}")
        by_cell.setdefault(match[1], {})[EDGES.index(edge)] = str(STATES.index(state))
    names = [""] if "" in by_cell else [f"{cell:02d}" for cell in range(max(len(by_cell), 1))]
    for name in names:
        digits = by_cell.get(name, {})
        missing = next((edge for edge in range(len(EDGES)) if edge not in digits), None)
        if missing is not None:
            source, target = EDGES[missing]
            raise UserError(f"the RobNet sample has no value for 'cell{name}/{source}-{target}'")
    strings = ["".join(by_cell[name][edge] for edge in range(len(EDGES))) for name in names]
    return strings[0] if names == [""] else strings


def bits(code: str | Sequence[str]) -> list[int]:
    """All bits, cell by cell and edge by edge, identity before convolution: 28 per string."""
    return [bit for text in check_code(code) for digit in text for bit in divmod(int(digit), 2)]


def count_convs(code: str | Sequence[str]) -> int:
    """Edges that hold a convolution (the paper's budget), summed over the strings."""
    return sum(bits(code)[1::2])


def count_identities(code: str | Sequence[str]) -> int:
    """Edges that hold an identity, summed over the strings."""
    return sum(bits(code)[0::2])


def count_direct_convs(code: str | Sequence[str]) -> int:
    """Direct edges that hold a convolution, summed over the strings (at most 5 each)."""
    return sum(int(text[edge]) % 2 for text in check_code(code) for edge in DIRECT_EDGES)


def density(code: str | Sequence[str]) -> float:
    """Share of all bits that are on (paper, section 3.3, with |E| = 28 per cell)."""
    values = bits(code)
    return sum(values) / len(values)


def direct_share(
    code: str | Sequence[str], denominator: Literal["direct_edges", "convs"] = "direct_edges"
) -> float:
    """Share of direct convolutions (paper, section 3.4).

    Parameters
    ----------
    code
        See :func:`check_code`.
    denominator
        ``"direct_edges"``: of the five direct edges per cell. All networks the authors published
        pass their rule "> 0.5" only with this one, so selection uses it. ``"convs"``: of all
        convolutions, the statistic of figure 6(b); 0.0 where there is no convolution.
    """
    strings = check_code(code)
    if denominator not in ("direct_edges", "convs"):
        raise UserError(
            f"denominator: {denominator!r} is not allowed; allowed: direct_edges, convs"
        )
    total = len(DIRECT_EDGES) * len(strings) if denominator == "direct_edges" else count_convs(code)
    return count_direct_convs(code) / total if total else 0.0
