"""Checkpoints of a training: one safetensors file each, the two newest are kept.

Tensors lie in the file as such, everything else as JSON in its header, beside a checksum. A file is
written under another name, flushed and renamed, so a kill leaves none half written; one that is
damaged later (disk full, bad copy) is reported and the one before it is used.
"""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch

from nni_robust.errors import DamageWarning, UserError
from nni_robust.training.weights import plain_tensors, read_weights, write_tensors

__all__ = ["KEEP", "clear", "load_newest", "save"]

#: Checkpoints that are kept.
KEEP = 2

_PATTERN = "checkpoint-*.safetensors"


def save(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and drop all but the newest two.

    Parameters
    ----------
    folder
        Where checkpoints lie.
    step
        Steps done; names the file.
    tensors
        Any tensors.
    state
        JSON-able.
    """
    tensors = plain_tensors(tensors)
    path = folder / f"checkpoint-{step:09d}.safetensors"
    header = {"state": json.dumps(state, allow_nan=False), "crc32": str(_checksum(tensors))}
    write_tensors(path, tensors, header)
    for old in _files(folder)[:-KEEP]:
        old.unlink()
    return path


def load_newest(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that is whole; None where there is none at all.

    Each that is not used is told by a :class:`DamageWarning`.

    Raises
    ------
    UserError
        If there are checkpoints but none is readable: starting anew would hide the loss.
    """
    files = _files(folder)
    for path in reversed(files):
        try:
            tensors, header = read_weights(path)
            if header.get("crc32") != str(_checksum(tensors)):
                raise UserError(f"'{path}' is damaged: its checksum is wrong")
            state = json.loads(header["state"])
        except (UserError, ValueError, KeyError) as e:
            warnings.warn(DamageWarning(f"checkpoint not used: {e}"), stacklevel=2)
            continue
        for damaged in files[files.index(path) + 1 :]:
            damaged.unlink()  # else they would count among the newest that are kept
        return tensors, state
    if files:
        raise UserError(f"no checkpoint in '{folder}' is readable; delete the folder to start anew")
    return None


def clear(folder: Path) -> None:
    """Remove all checkpoints, and what a kill in the middle of writing left."""
    for path in [*_files(folder), *folder.glob(f".{_PATTERN}.*.tmp")]:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(_PATTERN))


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    """CRC-32 over names and bytes."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value
