"""SIGTERM as Ctrl-C, also where Python drops an exception."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from nni_robust.nni_adapter.terminal import terminate_as_interrupt


class Finaliser:
    """Is told to end in the middle of its own end, where Python drops exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs between two instructions
            pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("what", "goes_on"), [(kill, False), (Finaliser, True)])
def test_a_signal_ends_what_runs(what: Callable[[], object], goes_on: bool) -> None:
    """At once, or where it was dropped, at the end."""
    before, went_on = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with terminate_as_interrupt():
            what()
            went_on.append(True)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert bool(went_on) == goes_on
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_a_signal_nothing_is_raised() -> None:
    with terminate_as_interrupt():
        pass
