"""The trial command, see the package. Only the standard library is imported before the fork."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from nni_robust.nni_adapter.warm import _protocol


def connect(path: Path) -> socket.socket:
    """A connection to the warm process, which is started where there is none.

    Raises
    ------
    OSError
        If it cannot be started.
    """
    with open(path.with_name("lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of trials that start together one starts it
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            _start(path)
            connection.connect(str(path))
        return connection


def _start(path: Path) -> None:
    """Start the warm process; its socket is open at once, it answers when it is warm."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(128)
        pid, start = _protocol.manager()
        command = [sys.executable, "-W", "ignore", "-m", "nni_robust.nni_adapter.warm.server"]
        # No pipe or file of NNI's stays open in it, or NNI would wait for the end of this trial.
        subprocess.Popen(
            [*command, str(listening.fileno()), str(path), str(pid), start],
            pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "NNI_PLATFORM": "unittest"},  # NNI then writes no log of its own
        )


def run_forked(argv: list[str]) -> int | None:
    """Run a module in a fork; its exit code, or None where it must be run here instead."""
    try:
        connection = connect(_protocol.socket_path())
        request = {"argv": argv, "cwd": os.getcwd(), "environment": dict(os.environ)}
        _protocol.send_request(connection, request, [1, 2])
    except OSError as e:
        print(f"no warm process ({e}); the trial imports everything itself", file=sys.stderr)
        return None
    pid = _answer(connection)
    if pid is None:
        print(
            "the warm process did not start; the trial imports everything itself", file=sys.stderr
        )
        return None

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    code = _answer(connection)
    # Without an answer the warm process was killed, and the fork dies with it.
    return 128 + signal.SIGKILL if code is None else code


def _answer(connection: socket.socket) -> int | None:
    """A number from the warm process; None where the connection ended first."""
    answer = b""
    while len(answer) < _protocol.CODE_BYTES:
        part = connection.recv(_protocol.CODE_BYTES - len(answer))
        if not part:
            return None
        answer += part
    return _protocol.unpack(answer)


def main(argv: list[str]) -> NoReturn:
    """Run ``python -m MODULE ARGUMENT …``, warm where that can be had."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.exit("usage: python -m nni_robust.nni_adapter.warm MODULE [ARGUMENT ...]")
    if argv[0] == "-m":  # what NNI puts behind an interpreter
        argv = argv[1:]
    code = run_forked(argv)
    if code is None:
        import runpy

        sys.argv = argv
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
