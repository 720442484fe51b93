"""Finding a data set's files, and the sentences that say what is missing or damaged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nni_robust.errors import UserError

__all__ = ["damaged", "find", "missing"]


def find(places: Iterable[Path], files: Iterable[str]) -> Path | None:
    """The first of `places` below which all `files` exist, else None."""
    wanted = list(files)
    return next((p for p in places if all((p / file).exists() for file in wanted)), None)


def missing(
    name: str, root: Path, wanted: str, url: str, target: Path, *, unpack: bool
) -> UserError:
    """The files of data set `name` are not there: what to download and where to put it."""
    return UserError(
        f"data set '{name}': {wanted} with all its files is not in '{root}'; download {url} and "
        f"{'unpack' if unpack else 'put'} it in '{target}' "
        "(another folder: root, or $NNI_ROBUST_DATA)"
    )


def damaged(name: str, path: Path, url: str) -> UserError:
    """The files of data set `name` are not the official ones."""
    return UserError(
        f"data set '{name}': the files in '{path}' are damaged (not the official md5); "
        f"download {url} again"
    )
