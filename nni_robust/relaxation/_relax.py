"""From a space to its relaxed form."""

from __future__ import annotations

from typing import Any

from nni_robust.errors import UserError
from nni_robust.relaxation._protocol import Relaxed

__all__ = ["relax"]


def relax(space: Any) -> Relaxed:
    """The relaxed form of a space: its own ``relaxed()``.

    Raises
    ------
    UserError
        If the space cannot be relaxed.
    """
    if hasattr(space, "relaxed"):
        result: Relaxed = space.relaxed()
        return result
    raise UserError(f"space {type(space).__name__} cannot be relaxed")
