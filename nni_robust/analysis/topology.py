"""What a study counts in an architecture: operations that are on, convolutions, direct edges.

RobNet (Guo et al., CVPR 2020, arXiv 1911.10695), sections 3.3 and 3.4. The findings take any
:class:`Topology`; :func:`robnet_topology` makes one from RobNet's code, which the records of a run
hold. A study of another space gives :func:`nni_robust.analysis.load_study` a function of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, get_args

from nni_robust.errors import UserError

__all__ = ["Definition", "Topology", "check_definition", "robnet_bit_names", "robnet_topology"]

#: What the number of direct convolutions is divided by, see :meth:`Topology.direct_share`.
Definition = Literal["direct_edges", "convs"]

#: (source, target) of a cell's 14 edges; nodes 0 and 1 are its inputs, 2 to 5 its inner nodes.
_EDGES = tuple((source, target) for target in range(2, 6) for source in range(target))
#: Both inputs to the first inner node, then each node to the next.
_DIRECT = tuple(
    edge for edge, (source, target) in enumerate(_EDGES) if target == source + 1 or target == 2
)
_CELL = re.compile(f"[0-3]{{{len(_EDGES)}}}")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Plain counts of an architecture, summed over its cells.

    Parameters
    ----------
    code
        Short text that names the architecture within its space; strings of several cells are
        separated by spaces.
    bits
        One 0 or 1 per operation that could be on.
    convs, identities
        Edges that hold a convolution, and edges that hold an identity.
    direct_convs
        Convolutions on direct edges.
    direct_edges
        Direct edges that there are.
    cells
        Cells that these counts are of; 1 where all cells share one code.
    """

    code: str
    bits: tuple[int, ...]
    convs: int
    identities: int
    direct_convs: int
    direct_edges: int
    cells: int = 1

    @property
    def density(self) -> float:
        """Share of the operations that are on, in [0, 1] (section 3.3, with 28 per cell)."""
        return sum(self.bits) / len(self.bits)

    @property
    def convs_per_cell(self) -> float:
        """The paper's budget, 0 to 14 in RobNet."""
        return self.convs / self.cells

    def direct_share(self, definition: Definition = "direct_edges") -> float:
        """Share of direct convolutions, in [0, 1].

        Parameters
        ----------
        definition
            ``"direct_edges"``: of the direct edges; with it alone do the authors' published
            networks pass their own rule "above 0.5". ``"convs"``: of all convolutions, as figure
            6(b) has it; 0 without any.

        Raises
        ------
        UserError
            If there is no such definition.
        """
        check_definition(definition)
        total = self.direct_edges if definition == "direct_edges" else self.convs
        return self.direct_convs / total if total else 0.0


def check_definition(definition: str) -> None:
    """Refuse a name that is no :data:`Definition`.

    Raises
    ------
    UserError
        Naming the allowed ones.
    """
    allowed = get_args(Definition)
    if definition not in allowed:
        raise UserError(f"definition: {definition!r} is not allowed; allowed: {', '.join(allowed)}")


def robnet_topology(code: str | Sequence[str]) -> Topology:
    """Counts of a RobNet code.

    Parameters
    ----------
    code
        14 digits for all cells, or one such string per cell (a list, or separated by spaces). A
        digit stands for an edge: 0 nothing, 1 convolution, 2 identity, 3 both.

    Returns
    -------
    Topology
        With 28 bits per string, edge by edge, the identity before the convolution.

    Raises
    ------
    UserError
        If it is no RobNet code.
    """
    strings = code.split() if isinstance(code, str) else [str(text) for text in code]
    wrong = next((text for text in strings if not _CELL.fullmatch(text)), None)
    if wrong is not None or not strings:
        raise UserError(
            f"code: {wrong if strings else code!r} is not a RobNet code; {len(_EDGES)} digits of 0 "
            "to 3 per cell are (give load_study a function that reads another space's codes)"
        )
    digits = [int(digit) for text in strings for digit in text]
    bits = tuple(bit for digit in digits for bit in divmod(digit, 2))
    return Topology(
        code=" ".join(strings),
        bits=bits,
        convs=sum(bits[1::2]),
        identities=sum(bits[0::2]),
        direct_convs=sum(int(text[edge]) % 2 for text in strings for edge in _DIRECT),
        direct_edges=len(_DIRECT) * len(strings),
        cells=len(strings),
    )


def robnet_bit_names() -> tuple[tuple[str, str, bool], ...]:
    """Edge (``"0→2"``), operation, and whether the edge is direct, of a cell's 28 bits in order."""
    return tuple(
        (f"{source}→{target}", operation, edge in _DIRECT)
        for edge, (source, target) in enumerate(_EDGES)
        for operation in ("identity", "convolution")
    )
