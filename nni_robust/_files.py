"""Files that a kill at any moment does not damage, and what to do where one is damaged anyway."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import yaml

from nni_robust.errors import DamageWarning, UserError, disk_full

__all__ = [
    "append_record",
    "atomic_path",
    "check_space",
    "full_sentence",
    "mend_records",
    "read_json",
    "read_records",
    "remove_temporaries",
    "set_aside",
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


def remove_temporaries(folder: str | Path, *, below: bool = False) -> None:
    """Remove what kills in the middle of writing left; nobody else may be writing there.

    Parameters
    ----------
    folder
        Where.
    below
        In all folders below it, too.
    """
    folder = Path(folder)
    for left in folder.rglob(".*.tmp") if below else folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def check_space(folder: str | Path) -> None:
    """Refuse a folder whose disk is full.

    Raises
    ------
    UserError
        If a little cannot be written there for want of space.
    """
    probe = Path(folder) / f".space.{os.getpid()}.tmp"
    try:
        with open(probe, "wb") as f:
            f.write(bytes(_PROBE))
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        if disk_full(e):
            raise UserError(full_sentence(folder)) from e
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


_PROBE = 1 << 16  # bytes


def full_sentence(folder: str | Path) -> str:
    """What a user is told of a full disk."""
    return (
        f"no space is left on the disk of '{folder}' (or a quota is used up); what is stored there "
        "is whole: free some space and go on with --resume"
    )


def set_aside(path: str | Path, *, copy: bool = False) -> Path:
    """Rename (or copy) a damaged file to ``<name>.damaged``, numbered where that is taken.

    Returns
    -------
    Its new path.
    """
    path = Path(path)
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    if copy:
        shutil.copyfile(path, aside)
    else:
        path.rename(aside)
    return aside


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
    """Append one JSON line and flush it to disk.

    A torn last line of an earlier kill is cut off; one that lacks its newline only is completed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with filelock.FileLock(str(path) + ".lock"), open(path, "ab+") as f:
        size = f.seek(0, os.SEEK_END)
        if size:
            f.seek(size - 1)
            if f.read(1) != b"\n":
                f.seek(0)
                before, newline, torn = f.read().rpartition(b"\n")
                if _is_record(torn):
                    line = b"\n" + line
                else:
                    f.truncate(len(before + newline))
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


def mend_records(path: str | Path) -> int:
    """Take lines that are no records out of a JSON-lines file; a copy of the damaged file is kept.

    A torn last line is left to the next writer: it is what a kill leaves, and no damage.

    Returns
    -------
    Number of lines taken out; each may have been a record, and a :class:`DamageWarning` tells.
    """
    path = Path(path)
    if not path.is_file():
        return 0
    *lines, torn = path.read_bytes().split(b"\n")
    whole = [line for line in lines if _is_record(line)]
    lost = sum(bool(line.strip()) for line in lines) - len(whole)
    if lost:
        aside = set_aside(path, copy=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in whole) + torn)
        told = (
            f"{lost} of {len(whole) + lost} lines of '{path}' are damaged and were taken out; the "
            f"whole file was kept as '{aside.name}'"
        )
        warnings.warn(DamageWarning(told), stacklevel=2)
    return lost


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
