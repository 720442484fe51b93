"""How operations look in drawings: colour, line style, and how their names are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nni_robust.report._style import GREY, INK, PALETTE, plain

__all__ = ["is_absent", "operation_name", "operation_styles"]

Style = tuple[str, Any]

SOLID, DASHED, DOTTED = "-", (0, (3.2, 1.6)), (0, (1.1, 1.1))
DASH_DOT, LONG = (0, (5, 1.4, 1.2, 1.4)), (0, (7, 1.8))

#: Colour and line style of well-known operations; others take the unused ones in order.
KNOWN: dict[str, tuple[str, Any]] = {
    "conv": (PALETTE["blue"], SOLID),
    "sep_conv_3x3": (PALETTE["blue"], SOLID),
    "skip": (PALETTE["vermillion"], DASHED),
    "identity": (PALETTE["vermillion"], DASHED),
    "skip_connect": (PALETTE["vermillion"], DASHED),
    "sep_conv_5x5": (PALETTE["sky"], LONG),
    "dil_conv_3x3": (PALETTE["green"], DASH_DOT),
    "dil_conv_5x5": ("#004d38", (0, (5, 1.4, 1.2, 1.4, 1.2, 1.4))),
    "max_pool_3x3": (PALETTE["purple"], DOTTED),
    "avg_pool_3x3": (PALETTE["orange"], DOTTED),
}
SPARE: tuple[tuple[str, Any], ...] = (
    (PALETTE["blue"], SOLID),
    (PALETTE["vermillion"], DASHED),
    (PALETTE["green"], DASH_DOT),
    (PALETTE["purple"], DOTTED),
    (PALETTE["orange"], LONG),
    (PALETTE["sky"], SOLID),
    (INK, DASHED),
    (GREY, SOLID),
)
#: Operations (as in KNOWN) that mean "no edge".
ABSENT = frozenset({"none", "zero"})


def operation_styles(operations: Iterable[str]) -> dict[str, Style]:
    """A colour and line style for each operation, all different while there are enough.

    Parameters
    ----------
    operations
        Names; repeated ones count once.
    """
    names = list(dict.fromkeys(operations))
    known = {name: KNOWN.get(_key(name)) for name in names}
    styles: dict[str, Style] = {}
    for name in names:
        style = known[name]
        if style is None or style in styles.values():
            taken = [*styles.values(), *known.values()]
            free = [spare for spare in SPARE if spare not in taken]
            style = free[0] if free else SPARE[len(styles) % len(SPARE)]
        styles[name] = style
    return styles


def is_absent(operation: str) -> bool:
    """True for the operations that mean "no edge"."""
    return _key(operation) in ABSENT


def _key(operation: str) -> str:
    """One spelling for ``"sep conv 3x3"`` and ``"sep_conv_3x3"``."""
    return operation.lower().replace(" ", "_").replace("×", "x")


def operation_name(operation: str) -> str:
    """``"sep_conv_3x3"`` → ``"sep conv 3×3"``."""
    words = operation.replace("_", " ").split()
    return plain(" ".join(w.replace("x", "×") if w[:1].isdigit() else w for w in words))
