"""Serves a run's store over HTTP to trials on machines that do not share its file system.

Runs inside the process that runs the search, for as long as the search. Every request must carry
the run's token, which reaches the trials with the trial code (over SSH with NNI's remote service)
and appears in no command, parameter or log. The content itself goes over plain HTTP, as all traffic
of NNI does: on a network that is not trusted use a tunnel or a private network.

=========================  ========================================================================
``GET /v1/KEY/NAME``       a file of a computation; 304 where the ``ETag`` is known already
``PUT /v1/KEY/NAME``       store a file in one step, after its checksum was compared; the first
                           ``record.json`` stays
=========================  ========================================================================
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import re
import secrets
import socket
import threading
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nni_robust import __version__
from nni_robust.errors import UserError
from nni_robust.store_remote import CHECKSUM, TOKEN_FILE, VERSION

__all__ = ["make_token", "serve_store"]

_PART = re.compile(r"[A-Za-z0-9_][\w.+-]*")  # no hidden file, no folder above
_BLOCK = 1 << 20


def make_token(trial_code: Path) -> str:
    """The run's token; made on first use, readable by its owner only."""
    path = trial_code / TOKEN_FILE
    with (
        contextlib.suppress(FileExistsError),
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f,
    ):
        f.write(secrets.token_urlsafe(32))
    return path.read_text(encoding="ascii")


@contextlib.contextmanager
def serve_store(root: Path, token: str, host: str, port: int) -> Iterator[int]:
    """Serve the store in a folder while the block runs.

    Parameters
    ----------
    root
        The store's folder.
    token
        What every request must carry.
    host
        Address to listen on; where it is not one of this machine (behind a router, say), all are.
    port
        Port; 0 takes a free one.

    Yields
    ------
    The port.

    Raises
    ------
    UserError
        If the port cannot be had.
    """
    try:
        try:
            server = _Server((host, port), root, token)
        except OSError as e:
            if e.errno != errno.EADDRNOTAVAIL and not isinstance(e, socket.gaierror):
                raise
            server = _Server(("", port), root, token)
    except OSError as e:
        raise UserError(
            f"nni.store_port: {port} cannot be taken: {e.strerror}; choose another with "
            "--set nni.store_port=N"
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], root: Path, token: str) -> None:
        self.root, self.token = root, token
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a trial that ends leaves its connection as it is."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = f"nni-robust/{__version__}"

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return
        try:
            f = open(path, "rb")  # noqa: SIM115  a reader keeps the file that it opened
        except OSError:
            self._answer(HTTPStatus.NOT_FOUND, "no such file")
            return
        with f:
            state = os.fstat(f.fileno())
            tag = f'"{state.st_size:x}-{state.st_mtime_ns:x}"'
            if self.headers.get("If-None-Match") == tag:
                self.send_response(HTTPStatus.NOT_MODIFIED)
                self.end_headers()
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(state.st_size))
            self.send_header("ETag", tag)
            self.end_headers()
            left = state.st_size
            while left and (block := f.read(min(_BLOCK, left))):
                self.wfile.write(block)
                left -= len(block)
        if left:
            self.close_connection = True  # shorter than promised; the client notices

    def do_PUT(self) -> None:
        path = self._path()
        if path is None:
            return
        if path.name == "record.json" and path.is_file():
            self._drain()
            self._answer(HTTPStatus.OK, "kept the first one")
            return
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = self._receive(temporary)
            if not hmac.compare_digest(digest, self.headers.get(CHECKSUM, "")):
                temporary.unlink()  # before the answer: who has it may look
                self._answer(HTTPStatus.BAD_REQUEST, "the checksum is wrong")
                return
            os.replace(temporary, path)
            if path.name == "record.json":
                path.with_name("error.json").unlink(missing_ok=True)
            self._answer(HTTPStatus.OK, "stored")
        except OSError as e:
            self.close_connection = True
            self._answer(HTTPStatus.INSUFFICIENT_STORAGE, f"the store: {e.strerror}")
        finally:
            temporary.unlink(missing_ok=True)

    def _receive(self, path: Path) -> str:
        """Write the request's body to a file; its SHA-256."""
        digest, left = hashlib.sha256(), self._length()
        with open(path, "wb") as f:
            while left:
                block = self.rfile.read(min(_BLOCK, left))
                if not block:
                    break  # the checksum will be wrong
                digest.update(block)
                f.write(block)
                left -= len(block)
            f.flush()
            os.fsync(f.fileno())
        return digest.hexdigest()

    def _drain(self) -> None:
        left = self._length()
        while left and (block := self.rfile.read(min(_BLOCK, left))):
            left -= len(block)

    def _length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _path(self) -> Path | None:
        """The file that is asked for; None where the request was answered already."""
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            self._refuse(HTTPStatus.UNAUTHORIZED, "wrong token")
            return None
        version = self.headers.get(VERSION, "none")
        if version != __version__:
            self._refuse(
                HTTPStatus.CONFLICT,
                f"nni-robust {version} on the trial's machine, {__version__} where the search runs",
            )
            return None
        head, *parts = self.path.lstrip("/").split("/")
        if head != "v1" or len(parts) < 2 or not all(map(_PART.fullmatch, parts)):
            self._refuse(HTTPStatus.BAD_REQUEST, "no such path")
            return None
        path = self.server.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.server.root.resolve()):
            self._refuse(HTTPStatus.BAD_REQUEST, "no such path")
            return None
        return path

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # the body, if there is one, is not read
        self._answer(status, why)

    def _answer(self, status: HTTPStatus, text: str) -> None:
        body = text.encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for every request helps nobody."""
