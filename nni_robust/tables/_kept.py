"""Extracts of large files, kept beside other caches of the user: a second reading takes no time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_robust.errors import UserError
from nni_robust.store import content_key, read_json, write_text

__all__ = ["kept"]

_VERSION = 1  # of the extracts
_MOST_IN_MEMORY = 4
_memory: dict[tuple[str, int, int, str], Any] = {}


def kept(path: Path, kind: str, extract: Callable[[Path], Any]) -> Any:
    """What `extract` makes of a file, from an earlier call where the file is still the same.

    Parameters
    ----------
    path
        The file.
    kind
        Names the extract.
    extract
        Gives something JSON-able.

    Notes
    -----
    Extracts lie in ``$XDG_CACHE_HOME/nni-robust`` (``~/.cache``); where that cannot be written,
    nothing is kept.
    """
    state = path.stat()
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns, kind)
    if key in _memory:
        return _memory[key]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = root / "nni-robust" / "tables" / f"{content_key(_VERSION, *key)}.json"
    found = None
    if place.is_file():
        with contextlib.suppress(UserError):
            found = read_json(place)
    if found is None:
        text = json.dumps(extract(path))
        found = json.loads(text)
        with contextlib.suppress(OSError):
            write_text(place, text)
    while len(_memory) >= _MOST_IN_MEMORY:
        _memory.pop(next(iter(_memory)))
    _memory[key] = found
    return found
