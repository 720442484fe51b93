"""``nni-robust doctor``: is this machine ready, and what should its user know?"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap

from nni_robust.cli._arguments import add_json, port_number
from nni_robust.cli._console import print_json

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Check this machine and this installation. Exit code 0 where nothing fails, else 1; "
        "warnings do not count."
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=8080,
        metavar="N",
        help="port the web UI would take (default 8080)",
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run every check and print what it found."""
    from nni_robust.cli._checks import run_checks

    checks = run_checks(args.port)
    healthy = all(check.status != "fail" for check in checks)
    if args.json:
        print_json({"ok": healthy, "checks": [dataclasses.asdict(check) for check in checks]})
        return 0 if healthy else 1
    for check in checks:
        print(_paragraph(f"{check.status:<4}  {check.name}: {check.found}"))
        if check.advice:
            print(f"      -> {check.advice}")  # not wrapped: it may hold a command to copy
    warned = sum(check.status == "warn" for check in checks)
    print(f"\n{'ready' if healthy else 'not ready'}, {warned} warning(s)")
    return 0 if healthy else 1


def _paragraph(text: str) -> str:
    return textwrap.fill(
        text, width=100, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
    )
