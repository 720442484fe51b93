"""How the command line tells whether a figure can be believed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nni_robust.reliability import Reliability

__all__ = ["add_thorough", "print_reliability"]


def add_thorough(parser: argparse.ArgumentParser) -> None:
    """``--thorough``."""
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="also check that accuracy falls to zero at a very large eps, and that twice the steps "
        "change nothing, on the first 256 pictures; the cheap checks always run",
    )


def print_reliability(found: Reliability, where: str = "") -> None:
    """One line ``UNRELIABLE: …`` for each check that failed; where none did, how many passed.

    Parameters
    ----------
    found
        The checks.
    where
        What was evaluated, where several things were.
    """
    about = f"{where}: " if where else ""
    for reason in found.reasons:
        print(f"UNRELIABLE: {about}{reason}")
    if found.reliable:
        passed = sum(check.status == "passed" for check in found.checks)
        print(f"reliability: {about}{passed} of {len(found.checks)} checks ran, none failed")
