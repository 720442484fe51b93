"""``nni-robust archs``: the known architectures and what they cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import add_json
from nni_robust.cli._console import print_json, print_table, thousands
from nni_robust.errors import UserError, nearest

if TYPE_CHECKING:
    from nni_robust.architecture import Architecture

__all__ = ["add_arguments", "execute", "summary"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "List the known architectures: trainable parameters, and multiply-accumulates (MACs) of "
        "one picture, counted exactly at the entry's own input shape and classes."
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="shell pattern of names, such as 'robnet*'"
    )
    add_json(parser)


def summary(architecture: Architecture) -> dict[str, Any]:
    """Name, space, exact counts and provenance of one architecture, for JSON."""
    shape, classes = tuple(architecture.input_shape), architecture.num_classes
    cost = architecture.cost(input_shape=shape, num_classes=classes)
    return {
        "name": architecture.name,
        "space": architecture.space,
        "params": cost.params,
        "macs": cost.macs,
        "num_classes": classes,
        "input_shape": list(shape),
        "provenance": architecture.provenance.get("kind"),
        "trained": architecture.trained,
    }


def execute(args: argparse.Namespace) -> int:
    """List the architectures whose names match."""
    from nni_robust.architecture import list_architectures, load_architecture

    names = list_architectures(args.pattern)
    if not names:
        known = list_architectures()
        hint = nearest(args.pattern.strip("*?"), known)
        raise UserError(
            f"no architecture matches '{args.pattern}'{hint} (known: {', '.join(known)})"
        )
    found = [summary(load_architecture(name)) for name in names]
    if args.json:
        print_json(found)
        return 0
    print_table(
        ["name", "space", "parameters", "MACs", "classes", "input", "provenance"],
        [
            [
                entry["name"],
                entry["space"],
                thousands(entry["params"]),
                thousands(entry["macs"]),
                str(entry["num_classes"]),
                "×".join(map(str, entry["input_shape"])),
                str(entry["provenance"]),
            ]
            for entry in found
        ],
    )
    return 0
