"""Checks that several suites share.

What crosses to a trial or stays in a run folder is data: it must not hold a pickle.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nni
import pytest

__all__ = ["assert_no_pickled_files", "assert_refused", "sent_and_received"]

#: A larger pickle is refused by NNI; plain arguments stay far below.
_MOST_CHARACTERS = 65536


def assert_refused(call: Callable[[], Any], error: type[Exception], otherwise: str) -> None:
    """Fail with `otherwise` where a call does not raise `error`."""
    try:
        call()
    except error:
        return
    pytest.fail(otherwise, pytrace=False)


def sent_and_received(model: Any) -> Any:
    """An executable model as NNI hands it to a trial: dumped to JSON and loaded again."""
    text = nni.dump(model)
    pickled = list(_pickles(json.loads(text)))
    assert not pickled, (
        f"NNI can send this to a trial only as a pickle: {', '.join(pickled)}; give plain numbers, "
        "strings, lists and dicts as arguments, and define classes in a module that can be imported"
    )
    assert len(text) < _MOST_CHARACTERS, (
        f"{len(text)} characters are too many for a trial's parameters; let the trial read large "
        "things from a file"
    )
    return nni.load(text)


def _pickles(value: Any, path: str = "") -> Iterator[str]:
    """Places in NNI's JSON where it fell back to a pickle."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "__nni_obj__":
                yield path or "the object itself"
            yield from _pickles(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _pickles(inner, f"{path}[{place}]")
    elif isinstance(value, str) and value.startswith("bytes:"):
        yield path


def assert_no_pickled_files(folder: Path) -> None:
    """No file below `folder` is a pickle, whatever it is called."""
    found = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _is_pickle(path)
    ]
    assert not found, f"pickles in the store: {', '.join(found)}; keep JSON and safetensors"


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as f:
        first = f.read(2)
    if zipfile.is_zipfile(path):  # torch.save
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return first[:1] == b"\x80" and first[1:2] <= b"\x05"
