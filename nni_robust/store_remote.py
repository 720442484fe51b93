"""The store as a trial on another machine sees it: over HTTP, with a cache on that machine.

What a trial makes lies in the cache first, so that a trial which is started again on the machine
goes on from its checkpoints; when it is done its files are uploaded, its record last. What others
made, such as a supernet's weights, is downloaded once. See :mod:`nni_robust.store_server`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from nni_robust import __version__
from nni_robust.errors import UserError
from nni_robust.store import Store, atomic_path, read_json, write_text

__all__ = ["CHECKSUM", "TOKEN_FILE", "VERSION", "RemoteStore"]

#: File of the trial code that holds the token.
TOKEN_FILE = ".nni-robust-token"
#: Header of an upload: SHA-256 of the body.
CHECKSUM = "X-Checksum-Sha256"
#: Header of every request: the version of nni-robust on the trial's machine.
VERSION = "X-Nni-Robust-Version"

_PATIENCE = 120.0  # seconds; a busy machine, or one whose search is being resumed
_WHOLE = (30, 600)  # seconds to connect, and between two bytes

#: Files of a computation that are of no use elsewhere.
_STAYS = ("checkpoints", "evaluation", "lock", "error.json")


class RemoteStore(Store):
    """A store behind a URL.

    Parameters
    ----------
    url
        As :func:`nni_robust.store_server.serve_store` serves it.
    token
        The run's token.
    cache
        Folder on this machine; None is one below ``$NNI_ROBUST_CACHE`` or ``~/.cache/nni-robust``
        that belongs to the run.
    """

    def __init__(self, url: str, token: str, cache: Path | None = None) -> None:
        if cache is None:
            base = Path(os.environ.get("NNI_ROBUST_CACHE") or "~/.cache/nni-robust").expanduser()
            cache = base / "stores" / hashlib.sha256(token.encode()).hexdigest()[:16]
        super().__init__(cache)
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers.update({"Authorization": f"Bearer {token}", VERSION: __version__})
        self._session.trust_env = False  # a proxy has no business between trial and search

    @classmethod
    def of_this_trial(cls, url: str) -> RemoteStore:
        """With the token that came with the trial code.

        Raises
        ------
        UserError
            If none came.
        """
        path = Path(os.environ.get("NNI_CODE_DIR", "."), TOKEN_FILE)
        try:
            return cls(url, path.read_text(encoding="ascii").strip())
        except OSError:
            raise UserError(f"no '{path}'; it should have come with the trial code") from None

    def file(self, key: str, name: str) -> Path:
        """See :meth:`Store.file`; it is downloaded unless this machine has it as it is there."""
        path = self.folder(key) / name
        if not self._download(key, name, path):
            raise UserError(f"no file '{key}/{name}' in the store at {self.url}")
        return path

    def result(self, key: str) -> dict[str, Any] | None:
        """See :meth:`Store.result`."""
        path = self.folder(key) / ".there" / "record.json"
        return read_json(path) if self._download(key, "record.json", path) else None

    def failure(self, key: str) -> str | None:
        """See :meth:`Store.failure`."""
        path = self.folder(key) / ".there" / "error.json"
        return str(read_json(path)["error"]) if self._download(key, "error.json", path) else None

    def fail(self, key: str, reason: str, details: str = "") -> None:
        """See :meth:`Store.fail`."""
        super().fail(key, reason, details)
        self._upload(key, "error.json")

    def once(self, key: str, compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """See :meth:`Store.once`. Of two machines that compute the same the first result counts."""
        known = self.result(key)
        if known is None:
            super().once(key, compute)
            for name in self._made(key):
                self._upload(key, name)
            self._upload(key, "record.json")
            known = self.result(key)
        assert known is not None
        return known

    def _made(self, key: str) -> list[str]:
        """Files of a computation, relative to its folder, besides its record."""
        folder = self.folder(key)
        found = []
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            hidden = any(part.startswith(".") for part in parts)
            if hidden or parts[0] in (*_STAYS, "record.json") or not path.is_file():
                continue
            if path.suffix != ".lock" and ".damaged" not in path.name:
                found.append("/".join(parts))
        return found

    def _download(self, key: str, name: str, path: Path) -> bool:
        """Bring a file here; whether there is one. One that is here already is not sent again."""
        tag_path = path.with_name(f".{path.name}.etag")
        headers = {}
        if path.is_file() and tag_path.is_file():
            headers["If-None-Match"] = tag_path.read_text(encoding="utf-8")

        def fetch() -> bool:
            url = f"{self.url}/v1/{key}/{name}"
            with self._session.get(url, headers=headers, stream=True, timeout=_WHOLE) as answer:
                if answer.status_code == requests.codes.not_modified:
                    return True
                if answer.status_code == requests.codes.not_found:
                    return False
                self._check(answer)
                with atomic_path(path) as temporary, open(temporary, "wb") as f:
                    for block in answer.iter_content(1 << 20):
                        f.write(block)
                    if f.tell() != int(answer.headers["Content-Length"]):
                        raise requests.ConnectionError("the answer ended early")
                write_text(tag_path, answer.headers["ETag"])
                return True

        return self._patiently(fetch)

    def _upload(self, key: str, name: str) -> None:
        path = self.folder(key) / name
        digest = hashlib.sha256()
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)

        def put() -> bool:
            headers = {CHECKSUM: digest.hexdigest(), "Content-Length": str(path.stat().st_size)}
            with open(path, "rb") as body:
                url = f"{self.url}/v1/{key}/{name}"
                # An empty file would be sent in chunks.
                data = body if path.stat().st_size else b""
                self._check(self._session.put(url, data=data, headers=headers, timeout=_WHOLE))
            return True

        self._patiently(put)

    def _patiently(self, request: Callable[[], bool]) -> bool:
        """Try again while the other side is not there."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return request()
            except requests.RequestException as e:  # noqa: PERF203
                if time.monotonic() > end:
                    raise UserError(
                        f"the store at {self.url} does not answer: {type(e).__name__}; the trials' "
                        "machines must reach that address and port"
                    ) from e
                time.sleep(1)

    def _check(self, answer: requests.Response) -> None:
        if not answer.ok:
            raise UserError(f"the store at {self.url} refuses: {answer.text}")
