"""``nni-robust show``: what one architecture is, and a drawing of its cells."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.cli._archs import summary
from nni_robust.cli._arguments import ARCH_HELP, add_json
from nni_robust.cli._console import print_json, say, thousands
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.architecture import Architecture

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = "Print what an architecture is, where it comes from and what it costs."
    parser.add_argument("arch", metavar="ARCH", help=ARCH_HELP)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="draw its cells into FILE.svg or FILE.png"
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Describe the architecture; draw it where ``-o`` asks for it."""
    if args.output and Path(args.output).suffix not in (".svg", ".png"):
        raise UserError(f"-o '{args.output}' is not allowed; the name must end in .svg or .png")
    from nni_robust.architecture import load_architecture
    from nni_robust.exchange import evaluation_beside

    architecture = load_architecture(args.arch)
    about = summary(architecture) | {
        "code": architecture.code(),
        "space_args": dict(architecture.space_args),
        "provenance": dict(architecture.provenance),
    }
    measured = evaluation_beside(args.arch)
    if measured is not None:
        about["evaluation"] = measured
    if args.json:
        print_json(about | {"sample": dict(architecture.sample)})
    else:
        _print(about)
    if args.output:
        _draw(architecture, Path(args.output))
    return 0


def _print(about: dict[str, Any]) -> None:
    code = about["code"]
    shape = "×".join(map(str, about["input_shape"]))
    lines = [
        ("name", about["name"]),
        ("space", about["space"]),
        *((f"  {key}", value) for key, value in about["space_args"].items()),
        ("parameters", f"{thousands(about['params'])} ({about['num_classes']} classes)"),
        ("MACs", f"{thousands(about['macs'])} (one {shape} picture)"),
        ("weights", "trained" if about["trained"] else "none: it starts untrained"),
        *(
            ("provenance" if i == 0 else "", f"{key}: {value}")
            for i, (key, value) in enumerate(about["provenance"].items())
        ),
    ]
    if isinstance(code, (list, tuple)):
        lines += [("code" if i == 0 else "", part) for i, part in enumerate(code)]
    elif code is not None:
        lines.append(("code", code))
    if "evaluation" in about:
        lines += _measured(about["evaluation"])
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        print(f"{key:<{width}}  {value}")


def _measured(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Accuracies of ``train --evaluate``, and what is wrong with them."""
    from nni_robust.exchange import flags_of

    shown = "  ".join(f"{key} {value:.2%}" for key, value in evaluation["metrics"].items())
    where = f"{evaluation['pictures']} {evaluation['split']} pictures of {evaluation['dataset']}"
    flags = flags_of(evaluation)
    if flags is None:
        flags = ["not checked"]
    return [("measured", f"{shown}  ({where})"), *(("UNRELIABLE", flag) for flag in flags)]


def _draw(architecture: Architecture, path: Path) -> None:
    from nni_robust.report.drawing import draw_cells

    graphs = architecture.graphs()
    if not graphs:
        raise UserError(f"the space '{architecture.space}' offers no drawing of its networks")
    try:
        draw_cells(graphs).savefig(path, bbox_inches="tight")
    except OSError as e:
        raise UserError(f"-o '{path}' cannot be written: {e.strerror}") from None
    say(f"drawn into {path}")
