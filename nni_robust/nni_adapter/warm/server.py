"""The warm process: imports once, forks for every trial.

``python -m nni_robust.nni_adapter.warm.server FD PATH PID START`` (started by the trial command).
It lives as long as the process PID that starts the trials, NNI's manager or trial keeper, or the
last fork. CUDA must not be touched before the fork; nothing here does more than import.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from nni_robust.nni_adapter.warm import PRELOAD, _protocol

#: Seconds between two looks whether the manager is there.
_LOOK = 1.0


class Server:
    """Accepts requests, forks, tells exit codes.

    Parameters
    ----------
    listening
        The open socket.
    path
        Its path, removed at the end.
    manager
        Process id and start time of what starts the trials.
    """

    def __init__(self, listening: socket.socket, path: Path, manager: tuple[int, str]) -> None:
        self.listening, self.path, self.manager = listening, path, manager
        self.connections: dict[int, socket.socket] = {}  # by process id of the fork
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve until the manager is gone and the last fork has ended."""
        wakes, wake = socket.socketpair()
        wakes.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.selector.register(self.listening, selectors.EVENT_READ)
        self.selector.register(wakes, selectors.EVENT_READ)
        try:
            while self.connections or _protocol.started(self.manager[0]) == self.manager[1]:
                for key, _ in self.selector.select(_LOOK):
                    if key.fileobj is self.listening:
                        self._accept()
                    elif key.fileobj is wakes:
                        with contextlib.suppress(BlockingIOError):
                            wakes.recv(4096)
                    else:
                        self._left(key.data)
                self._reap()
        finally:
            self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        connection, _ = self.listening.accept()
        try:
            request, fds = _protocol.receive_request(connection, 2)
        except (OSError, ValueError):
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            self.listening.close()
            self.selector.close()
            for other in [connection, *self.connections.values()]:
                other.close()
            from nni_robust.nni_adapter.warm.child import become

            become(request, fds)  # does not return
        for fd in fds:
            os.close(fd)
        self.connections[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ, pid)
        with contextlib.suppress(OSError):
            connection.sendall(_protocol.pack(pid))

    def _left(self, pid: int) -> None:
        """The trial command was killed: its fork must not live on."""
        connection = self.connections.get(pid)
        if connection is None:
            return
        self.selector.unregister(connection)
        connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        for pid in list(self.connections):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                continue
            code = os.waitstatus_to_exitcode(status)
            connection = self.connections.pop(pid)
            with contextlib.suppress(OSError, KeyError, ValueError):
                self.selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(_protocol.pack(code if code >= 0 else 128 - code))
            connection.close()


def preload(what: dict[str, Any]) -> None:
    """Import and read what every trial needs; what cannot be had is the trials' own matter."""
    for name in ["nni.nas.execution.training_service", *what.get("modules", [])]:
        with contextlib.suppress(Exception):
            import_module(name)
    if "task" not in what:
        return
    import torch

    from nni_robust.config import parse
    from nni_robust.data import preload_task
    from nni_robust.task import Task

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads would not live on in a fork
    with contextlib.suppress(Exception):
        preload_task(parse(Task, what["task"], "task"))
    torch.set_num_threads(threads)


def main(argv: list[str]) -> None:
    """See the module."""
    fd, path, pid, start = argv
    sys.path[0] = ""  # as `python -m` has it, for modules in the folder of the trial code
    listening = socket.socket(fileno=int(fd))
    found = Path(PRELOAD)
    preload(json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {})
    Server(listening, Path(path), (int(pid), start)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
