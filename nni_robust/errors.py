"""The one exception that users are meant to see.

A :class:`UserError` is one clear sentence naming the key, the value and what is allowed. The
command line prints it without a traceback and exits with code 2; library callers can catch it.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

__all__ = ["DamageWarning", "UserError", "disk_full", "nearest"]


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what and what is allowed."""


class DamageWarning(UserWarning):
    """A damaged file was not used; the message names it and says what is done instead."""


def disk_full(error: BaseException | None) -> bool:
    """Whether an error came about because a disk, a quota or an allowed file size is exhausted.

    Libraries written in Rust or C tell only by their text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
