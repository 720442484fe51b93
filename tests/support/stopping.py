"""Stops in place of kills, where a process of its own is not needed."""

from __future__ import annotations

from typing import Any


class Stop(Exception):
    """The evaluation was stopped."""


def stopping_after(batches: int) -> Any:
    """A progress function that stops after so many batches of any stage but the clean one."""
    seen = []

    def progress(done: int, total: int | None, stage: str) -> None:
        seen.extend([stage] * (stage != "clean"))
        if len(seen) == batches:
            raise Stop

    return progress
