"""The folder of a trained network: written in the layout of model hubs, and read again.

Nothing in it is a pickle, and nothing is fetched. The weights are taken only if their sha256 is the
one in ``config.json``, so a torn copy or a swapped file is told and never loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nni_robust.architecture import Architecture
from nni_robust.errors import UserError
from nni_robust.store import read_json

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT",
    "RESULTS",
    "WEIGHTS",
    "config_of",
    "is_folder",
    "read_folder",
    "sha256_of",
]

#: The number changes when old readers could not read it.
FORMAT = "nni-robust/model/1"

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RESULTS = "results.json"
CARD = "README.md"

_PIXELS = (
    "float pictures (N, C, H, W) in [0, 1]; whatever normalisation the network wants is a layer of "
    "it, so nothing is to be subtracted or divided before"
)


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder that looks like one of ours."""
    return (Path(path) / CONFIG).is_file()


def config_of(architecture: Architecture, weights: Path) -> dict[str, Any]:
    """What ``config.json`` says of a network whose weights lie in a file."""
    return {
        "format": FORMAT,
        "architecture": dataclasses.replace(architecture, weights=Path(WEIGHTS)).to_dict(),
        "input_shape": list(architecture.input_shape),
        "num_classes": architecture.num_classes,
        "normalization": _PIXELS,
        "weights": {
            "file": WEIGHTS,
            "sha256": sha256_of(weights),
            "bytes": weights.stat().st_size,
        },
        "versions": _versions(),
    }


def read_folder(folder: str | Path) -> Architecture:
    """The architecture of an exported folder, its weights checked against their sha256.

    Raises
    ------
    UserError
        If a file is missing or damaged, or the weights are not those that were exported.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    where = f"'{folder / CONFIG}'"
    if not isinstance(config, Mapping) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, Mapping) else type(config).__name__
        raise UserError(f"{where}: format: {found!r} is not allowed; '{FORMAT}' is")
    weights = config.get("weights")
    expected = weights.get("sha256") if isinstance(weights, Mapping) else None
    if not isinstance(expected, str):
        raise UserError(f"{where}: weights.sha256: {expected!r} is not allowed; a hash is")
    fields = config.get("architecture")
    if not isinstance(fields, Mapping):
        raise UserError(f"{where}: architecture: {fields!r} is not allowed; a mapping is")
    path = folder / WEIGHTS
    architecture = Architecture.from_dict({**fields, "weights": str(path)}, where=where)
    if not path.is_file():
        raise UserError(f"'{folder}' has no weights: {WEIGHTS} is missing")
    found = sha256_of(path)
    if found != expected:
        raise UserError(
            f"'{path}' is damaged or was swapped: its sha256 is {found[:12]}…, {CONFIG} says "
            f"{expected[:12]}…"
        )
    return architecture


def _versions() -> dict[str, str]:
    packages = ("nni-robust", "nni", "torch", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
