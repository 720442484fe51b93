"""Architectures by name: the zoo of published ones, and files."""

from __future__ import annotations

import fnmatch
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from nni_robust.architecture._architecture import FORMAT, Architecture
from nni_robust.config import read_yaml
from nni_robust.errors import UserError, nearest
from nni_robust.registry import search_spaces
from nni_robust.store import read_json

__all__ = ["list_architectures", "load_architecture"]

_ZOO = Path(__file__).parent / "zoo"


@lru_cache(maxsize=1)
def _entries() -> dict[str, dict[str, Any]]:
    """All entries of the zoo's files: fields of an architecture file, by name."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(_ZOO.glob("*.yaml")):
        for name, entry in read_yaml(path).items():
            if name in entries:
                raise ValueError(f"{path}: '{name}' is in the zoo already")
            entries[name] = entry
    return entries


def list_architectures(pattern: str = "*") -> list[str]:
    """Names of the zoo's architectures that match a pattern such as ``"robnet*"``, sorted."""
    return sorted(name for name in _entries() if fnmatch.fnmatchcase(name, pattern))


def load_architecture(name_or_path: str | Path) -> Architecture:
    """An architecture of the zoo, or of a file.

    Parameters
    ----------
    name_or_path
        A name that :func:`list_architectures` gives, or the path of a .yaml, .yml or .json file
        that :meth:`Architecture.save` wrote, or that a space knows as one of its authors', such as
        ``WRN-A1.yaml`` of the wide residual networks; or a folder of ``nni-robust export``,
        ``train``, or ``run`` (its winner).

    Raises
    ------
    UserError
        If there is no such name or file, or the file is damaged or describes no architecture.

    Examples
    --------
    >>> load_architecture("robnet-small").cost().params
    4359574
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in _entries():
        entry = {"format": FORMAT, "name": name, **_entries()[name]}
        return Architecture.from_dict(entry, where=f"zoo entry '{name}'")
    path = Path(name_or_path)
    if path.is_dir():
        from nni_robust.exchange import is_folder, network_file, read_folder

        if is_folder(path):
            return read_folder(path)
        path = network_file(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        if path.exists():
            raise UserError(
                f"'{name}' is no architecture file; the name of one ends in .yaml, .yml or .json "
                "(a file of weights goes with --weights)"
            )
        if _is_path(name):
            raise UserError(f"there is no file or folder '{name}'")
        raise UserError(
            f"unknown architecture '{name}'{nearest(name, _entries())} (a name that "
            "`nni-robust archs` lists is needed, or the path of a .yaml or .json file, or of a "
            "folder of `nni-robust export`, `train` or `run`)"
        )
    value = read_json(path) if path.suffix == ".json" else read_yaml(path)
    if isinstance(value, dict) and "format" not in value:
        foreign = _foreign(value, path)
        if foreign is not None:
            return foreign
    if isinstance(value, dict) and isinstance(value.get("weights"), str):
        value["weights"] = str(path.parent / value["weights"])
    return Architecture.from_dict(value, where=f"'{path}'")


def _is_path(name: str) -> bool:
    """Whether a text cannot be a name of the zoo's, which has no separators in its names."""
    return "/" in name or os.sep in name or name.startswith((".", "~"))


def _foreign(value: dict[str, Any], path: Path) -> Architecture | None:
    """The architecture of a file in a form that some space knows; None where none does."""
    for name in search_spaces.names():
        reader = getattr(search_spaces.get(name), "read_foreign", None)
        found: Architecture | None = None if reader is None else reader(value, path)
        if found is not None:
            return found
    return None
