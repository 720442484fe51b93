"""The flags of records in short: names of the checks that failed, where they are read or averaged.

:mod:`nni_robust.reliability` makes the flags; this reads what records, tables and CSV files keep of
them, without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["UNKNOWN", "Flags", "flags_of", "merge_flags", "parse_flags", "show_flags"]

#: Names of the checks that failed, ``()`` where none did; None where nobody has checked.
Flags = tuple[str, ...] | None

#: How flags that nobody knows are written.
UNKNOWN = "unknown"


def flags_of(record: Mapping[str, Any]) -> Flags:
    """Flags of a record or final network, from its ``reliability``."""
    found = record.get("reliability")
    reasons = found.get("unreliable") if isinstance(found, Mapping) else None
    if not isinstance(reasons, list):
        return None
    return tuple(dict.fromkeys(str(reason).partition(":")[0] for reason in reasons))


def merge_flags(several: Iterable[Flags]) -> Flags:
    """Flags of what was made of several results, such as a mean.

    A check that failed on one counts; where none is known to have failed, all have to be known.
    """
    found = list(several)
    names = tuple(dict.fromkeys(name for flags in found for name in flags or ()))
    return None if not names and (not found or None in found) else names


def show_flags(flags: Flags) -> str:
    """``"one-answer;zero-gradient"``, empty where none failed, or ``"unknown"``."""
    return UNKNOWN if flags is None else ";".join(flags)


def parse_flags(text: str) -> Flags:
    """Inverse of :func:`show_flags`."""
    return None if text == UNKNOWN else tuple(name for name in text.split(";") if name)
