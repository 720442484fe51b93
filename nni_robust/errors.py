"""The one exception that users are meant to see.

A :class:`UserError` is one clear sentence naming the key, the value and what is allowed. The
command line prints it without a traceback and exits with code 2; library callers can catch it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "nearest"]


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what and what is allowed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed name, or an empty string.

    Parameters
    ----------
    name
        What was typed.
    allowed
        The names that exist.
    """
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
