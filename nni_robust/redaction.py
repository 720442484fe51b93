"""Secrets in settings: never written to a file or a log of ours, and best not in a file at all.

A value ``${NAME}`` stands for the environment variable NAME, so that a file holds the name only.
A secret that was written out is replaced by ``***`` in whatever is kept or printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from nni_robust.errors import UserError

__all__ = ["MASK", "find_secrets", "redact", "redact_text", "resolve"]

#: What stands where a secret was.
MASK = "***"

_WORDS = "password|passphrase|secret|token|account_?key|access_?key"
_KEY = re.compile(_WORDS, re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{(\w+)\}")
_IN_TEXT = re.compile(
    rf"(?P<key>\w*(?:{_WORDS})\w*[\"']?\s*[:=]\s*)(?P<value>\"[^\"]*\"|'[^']*'|\$\{{\w+\}}|[^\s,}}\]]+)",
    re.IGNORECASE,
)


def find_secrets(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys of the secrets in nested settings, with their values."""
    found: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if _is_secret(key, inner):
                found.append((name, inner))
            else:
                found += find_secrets(inner, name)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            found += find_secrets(inner, f"{prefix}.{index}")
    return found


def redact(value: Any) -> Any:
    """A copy of nested settings with :data:`MASK` for every secret that is written out."""
    if isinstance(value, Mapping):
        return {
            key: MASK
            if _is_secret(key, inner) and not _REFERENCE.fullmatch(str(inner))
            else redact(inner)
            for key, inner in value.items()
        }
    return [redact(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def redact_text(text: str) -> str:
    """A line with :data:`MASK` for what follows a secret's key, as in ``password: x``."""
    return _IN_TEXT.sub(
        lambda m: m["key"] + (m["value"] if _REFERENCE.fullmatch(m["value"]) else MASK), text
    )


def resolve(value: Any, where: str) -> Any:
    """A copy of nested settings with the values of environment variables for ``${NAME}``.

    Parameters
    ----------
    value
        The settings.
    where
        Their key, for messages.

    Raises
    ------
    UserError
        If a variable is not set, or a secret was redacted in the file that this comes from.
    """
    if isinstance(value, Mapping):
        return {key: resolve(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolve(inner, f"{where}.{index}") for index, inner in enumerate(value)]
    if value == MASK:
        raise UserError(
            f"{where}: secrets are not kept in run folders; write ${{NAME}} in the experiment file "
            "and set the environment variable NAME, or resume with the experiment file"
        )
    reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if reference is None:
        return value
    if reference[1] not in os.environ:
        raise UserError(f"{where}: the environment variable {reference[1]} is not set")
    return os.environ[reference[1]]


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and bool(_KEY.search(str(key)))
