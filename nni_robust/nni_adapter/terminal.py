"""What a command needs that starts NNI from a terminal: a free port, and an orderly end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

from nni_robust.errors import UserError

__all__ = ["check_port", "terminate_as_interrupt"]


def check_port(port: int, key: str = "port") -> None:
    """Refuse a port that somebody already listens on.

    Parameters
    ----------
    port
        The port.
    key
        Its key below ``nni``.

    Raises
    ------
    UserError
        If it is in use.
    """
    with socket.socket() as s:
        s.settimeout(2)
        if s.connect_ex(("127.0.0.1", port)) == 0:
            free = "with --port" if key == "port" else f"with --set nni.{key}=N"
            raise UserError(
                f"nni.{key}: {port} is in use; choose a free one {free}, or stop what listens "
                "there ('nnictl experiment list' names NNI's own)"
            )


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM ends the run as Ctrl-C does: NNI stopped, the folder resumable.

    Python drops what is raised inside a finaliser or a callback. Such a signal ends the run where
    the context ends.
    """
    came = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        raise KeyboardInterrupt
