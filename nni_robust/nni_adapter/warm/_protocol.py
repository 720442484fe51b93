"""What the trial command and the warm process say to each other, over a Unix socket.

The command sends one request (JSON behind its length, with the file descriptors of its output); the
warm process answers with the fork's process id, and with its exit code when it has ended. A closed
connection means that the other side is gone.
"""

from __future__ import annotations

import array
import hashlib
import json
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = [
    "CODE_BYTES",
    "manager",
    "pack",
    "receive_request",
    "send_request",
    "socket_path",
    "started",
    "unpack",
]

_LENGTH = struct.Struct("!I")
_CODE = struct.Struct("!i")

#: Length of an answer.
CODE_BYTES = _CODE.size


def socket_path() -> Path:
    """Where the warm process of this experiment, user and interpreter listens.

    Raises
    ------
    OSError
        If the folder belongs to somebody else, who could then run our trials.
    """
    folder = Path(tempfile.gettempdir()) / f"nni-robust-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise PermissionError(f"'{folder}' is not ours alone")
    # Side by side in one experiment: NNI's manager and, on loopback, its remote machines.
    parts = [os.environ.get("NNI_EXP_ID", ""), sys.executable, *map(str, manager())]
    return folder / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def manager() -> tuple[int, str]:
    """Process id and start time of what started this trial: NNI's manager or trial keeper."""
    pid = os.getppid()
    if _command(pid)[:1] and Path(_command(pid)[0]).name in ("bash", "sh"):
        pid = int(_stat(pid)[1])
    return pid, started(pid)


def started(pid: int) -> str:
    """Start time of a process, which tells it from a later one of the same id; empty if gone."""
    try:
        return _stat(pid)[19]
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the third on (state, parent, …)."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return []


def send_request(connection: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
    """Send a request with file descriptors."""
    body = json.dumps(request).encode()
    packed = array.array("i", fds)
    head = _LENGTH.pack(len(body))
    connection.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed.tobytes())])
    connection.sendall(body)


def receive_request(connection: socket.socket, fds: int) -> tuple[dict[str, Any], list[int]]:
    """Receive what :func:`send_request` sent.

    Raises
    ------
    OSError
        If the other side went away in the middle.
    """
    head, found, _, _ = socket.recv_fds(connection, _LENGTH.size, fds)
    if len(head) < _LENGTH.size or len(found) != fds:
        for fd in found:
            os.close(fd)
        raise ConnectionError("no whole request")
    (length,) = _LENGTH.unpack(head)
    body = b""
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            raise ConnectionError("no whole request")
        body += part
    return json.loads(body), list(found)


def pack(code: int) -> bytes:
    """A number as the warm process answers it: first the fork's process id, then its exit code."""
    return _CODE.pack(code)


def unpack(answer: bytes) -> int:
    """The number of an answer."""
    return int(_CODE.unpack(answer)[0])
