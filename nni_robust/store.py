"""Run folders: everything a run made, written so that a kill at any moment damages nothing.

* Whole files are written to a temporary name, flushed to disk and renamed (:func:`write_json`, …).
* Logs of records are append-only JSON lines; a torn last line (a kill in the middle of a write) is
  dropped by the reader and cut off by the next writer.
* :meth:`Store.once` makes a computation idempotent: its result is stored under a key, a second
  caller (a trial that NNI starts again after a crash, a resumed strategy) gets the stored result,
  and one that comes while the first still computes waits for it. The lock is the operating
  system's, so it goes with the process that held it.

Nothing here is a pickle; a run folder from a stranger can be read safely.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import yaml

from nni_robust.errors import UserError

__all__ = [
    "Store",
    "append_record",
    "atomic_path",
    "content_key",
    "read_json",
    "read_records",
    "write_json",
    "write_text",
    "write_yaml",
]


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it replaces `path` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file in one step (numbers that are not finite are refused)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def write_yaml(path: str | Path, value: Any) -> None:
    """Write a YAML file in one step, keys in the given order."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file '{path}'") from None
    except (OSError, ValueError) as e:
        raise UserError(f"'{path}' is damaged: {e}") from None


def append_record(path: str | Path, record: dict[str, Any]) -> None:
    """Append one JSON line and flush it to disk; a torn last line of an earlier kill is cut off."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with filelock.FileLock(str(path) + ".lock"), open(path, "ab+") as f:
        size = f.seek(0, os.SEEK_END)
        if size:
            f.seek(size - 1)
            if f.read(1) != b"\n":
                f.seek(0)
                f.truncate(f.read().rfind(b"\n") + 1)
        f.write(line)
        f.flush()
        os.fsync(f.fileno())


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Every whole record of a JSON-lines file, in order; an absent file has none.

    Raises
    ------
    UserError
        If a line other than a torn last one is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines):  # no newline behind it: torn by a kill
                break
            raise UserError(f"'{path}' is damaged in line {number}") from None
    return records


def content_key(*parts: Any) -> str:
    """A short stable name of JSON-able values: equal values, equal key, on every machine.

    Whole floats count as integers: NNI's manager is JavaScript and sends ``1.0`` on as ``1``.
    """
    text = json.dumps(_whole(parts), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(inner) for inner in value]
    return value


class Store:
    """Artefacts and results shared by the trials of one run, in a folder.

    Parameters
    ----------
    root
        Folder; made on first use. Trials on other machines need the same path (a shared file
        system).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, key: str) -> Path:
        """The folder of one computation: checkpoints, weights, its record."""
        return self.root / key

    def result(self, key: str) -> dict[str, Any] | None:
        """The stored result under `key`, or None where it has not been computed."""
        path = self.folder(key) / "record.json"
        return read_json(path) if path.is_file() else None

    def failure(self, key: str) -> str | None:
        """Why the last computation under `key` failed, or None where that is not known."""
        path = self.folder(key) / "error.json"
        return str(read_json(path)["error"]) if path.is_file() else None

    def once(self, key: str, compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Return the result stored under `key`; compute and store it where there is none.

        Parameters
        ----------
        key
            Names the computation, see :func:`content_key`.
        compute
            Called with the computation's folder; returns a JSON-able result. It may keep
            checkpoints in that folder and continue from those that a killed predecessor left.
        """
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(folder / "lock")):
            known = self.result(key)
            if known is None:
                start = time.monotonic()
                try:
                    known = compute(folder)
                except Exception as e:
                    # Another process may wait for the result; this file tells it why there is none.
                    why = {"error": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()}
                    write_json(folder / "error.json", why)
                    raise
                known.setdefault("wall_seconds", round(time.monotonic() - start, 3))
                write_json(folder / "record.json", known)
                (folder / "error.json").unlink(missing_ok=True)
            return known
