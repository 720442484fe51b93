"""Run folders: everything a run made, written so that a kill at any moment damages nothing.

* Whole files are written to a temporary name, flushed to disk and renamed (:func:`write_json`, …).
* Logs of records are append-only JSON lines; a torn last line (a kill in the middle of a write) is
  dropped by the reader and cut off by the next writer.
* A file that was damaged later (a bad disk, a careless copy) is set aside under the name
  ``….damaged`` with a :class:`DamageWarning`, and what it held is made again.
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
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from nni_robust._files import (
    append_record,
    atomic_path,
    check_space,
    full_sentence,
    mend_records,
    read_json,
    read_records,
    remove_temporaries,
    set_aside,
    write_json,
    write_text,
    write_yaml,
)
from nni_robust.errors import DamageWarning, UserError

__all__ = [
    "URL",
    "Store",
    "append_record",
    "atomic_path",
    "check_space",
    "content_key",
    "full_sentence",
    "mend_records",
    "open_store",
    "read_json",
    "read_records",
    "remove_temporaries",
    "set_aside",
    "write_json",
    "write_text",
    "write_yaml",
]

#: Environment variable of trials: where the store is served, if they do not reach it as files.
URL = "NNI_ROBUST_STORE"


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


#: Reason of a computation that was interrupted: by Ctrl-C, by NNI, from its web UI.
STOPPED = "it was stopped, by hand or by NNI"


class Store:
    """Artefacts and results shared by the trials of one run, in a folder.

    Parameters
    ----------
    root
        Folder; made on first use. Trials on other machines need the same path (a shared file
        system), or get a :class:`nni_robust.store_remote.RemoteStore` from :func:`open_store`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, key: str) -> Path:
        """The folder of one computation on this machine: checkpoints, weights, its record."""
        return self.root / key

    def file(self, key: str, name: str) -> Path:
        """A file of another computation, on this machine.

        Parameters
        ----------
        key
            The computation, which must be done.
        name
            The file's name in its folder, such as ``"weights.safetensors"``.
        """
        return self.folder(key) / name

    def result(self, key: str) -> dict[str, Any] | None:
        """The stored result under `key`, or None where it has not been computed.

        A damaged one counts as none: it is set aside with a :class:`DamageWarning`, unless another
        process holds the computation and so is about to write it.
        """
        path = self.folder(key) / "record.json"
        try:
            return _record(path)
        except UserError:
            with (
                contextlib.suppress(filelock.Timeout),
                filelock.FileLock(str(path.with_name("lock")), timeout=0),
            ):
                return self._whole_result(key)
            return None

    def _whole_result(self, key: str) -> dict[str, Any] | None:
        """The result, a damaged one set aside; under the lock of its folder."""
        path = self.folder(key) / "record.json"
        try:
            return _record(path)
        except UserError as e:
            aside = set_aside(path)
            warnings.warn(
                DamageWarning(f"{e}; set aside as '{aside.name}', the trial is computed again"),
                stacklevel=4,
            )
            return None

    def failure(self, key: str) -> str | None:
        """Why the last computation under `key` failed, or None where that is not known."""
        path = self.folder(key) / "error.json"
        if not path.is_file():
            return None
        try:
            return str(read_json(path)["error"])
        except (UserError, KeyError, TypeError):
            return f"unknown, for '{path}' is damaged"

    def failed_at(self, key: str) -> int:
        """A number that changes with every failure under `key` that gave a reason; 0 is none."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder(key) / "error.json").stat().st_mtime_ns
        return 0

    def fail(self, key: str, reason: str, details: str = "") -> None:
        """Keep why a computation failed, for those who want its result."""
        write_json(self.folder(key) / "error.json", {"error": reason, "traceback": details})

    def once(self, key: str, compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Return the result stored under `key`; compute and store it where there is none.

        Parameters
        ----------
        key
            Names the computation, see :func:`content_key`.
        compute
            Called with the computation's folder; returns a JSON-able result. It may keep
            checkpoints in that folder and continue from those that a killed predecessor left.
            Each :class:`DamageWarning` that it gives is kept in the result as well, under
            ``"warnings"``: a trial's standard error is read by nobody.
        """
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(folder / "lock")):
            with _damage() as damage:
                known = self._whole_result(key)
                if known is None:
                    remove_temporaries(folder, below=True)
                    start = time.monotonic()
                    try:
                        known = compute(folder)
                    except (Exception, KeyboardInterrupt) as e:
                        # Another process may wait for the result; this tells it why there is none.
                        # NNI stops a trial by an interrupt; what says nothing was killed.
                        why = f"{type(e).__name__}: {e}" if isinstance(e, Exception) else STOPPED
                        with contextlib.suppress(OSError):  # a full disk must not hide the reason
                            self.fail(key, why, traceback.format_exc())
                        raise
                    known.setdefault("wall_seconds", round(time.monotonic() - start, 3))
                    if damage:
                        known["warnings"] = damage
                    write_json(folder / "record.json", known)
                    (folder / "error.json").unlink(missing_ok=True)
            return known


def open_store(root: str | Path) -> Store:
    """The store of this trial's run: the folder, or what the run serves to other machines.

    Parameters
    ----------
    root
        The folder, where trials reach it as files.
    """
    url = os.environ.get(URL)
    if url is None:
        return Store(root)
    from nni_robust.store_remote import RemoteStore

    return RemoteStore.of_this_trial(url)


def _record(path: Path) -> dict[str, Any] | None:
    """A record file, None where there is none.

    Raises
    ------
    UserError
        If it is damaged.
    """
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is damaged: it holds no mapping")
    return value


@contextlib.contextmanager
def _damage() -> Iterator[list[str]]:
    """Collect what is told of damage, and let it be told as well."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", DamageWarning)
        show = warnings.showwarning

        def collect(message: Warning | str, category: type[Warning], *more: Any) -> None:
            if issubclass(category, DamageWarning):
                found.append(str(message))
            show(message, category, *more)

        warnings.showwarning = collect  # type: ignore[assignment]
        yield found
