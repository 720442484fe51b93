"""``nni-robust convert``: weights of somebody else's checkpoint for an architecture of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from nni_robust.cli._arguments import ARCH_HELP, add_json, positive, writable_folder
from nni_robust.cli._console import print_json

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Read the tensors of a checkpoint (.pth, .pth.tar, .pt) without running anything that is "
        "in it, and write an architecture file and its weights as safetensors. Every tensor of the "
        "network must be there and fit. Names are those of the RobNet authors' checkpoints."
    )
    parser.add_argument("file", metavar="FILE", help="checkpoint that torch.save wrote")
    parser.add_argument("--arch", required=True, metavar="ARCH", help=ARCH_HELP)
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT.yaml",
        help="architecture file to write (.yaml, .yml or .json); the weights go beside it",
    )
    parser.add_argument(
        "--num-classes",
        type=positive,
        metavar="N",
        help="outputs of the network (default: the architecture's own)",
    )
    parser.add_argument(
        "--first-classes",
        action="store_true",
        help="drop the classifier's outputs beyond those (the authors' SVHN networks have 100, of "
        "which 10 were used)",
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Convert, and say what was written and what was left out."""
    from nni_robust.architecture.checkpoint import convert_checkpoint

    writable_folder(str(Path(args.out).parent))
    done = convert_checkpoint(
        args.file,
        args.arch,
        args.out,
        num_classes=args.num_classes,
        first_classes=args.first_classes,
    )
    kept = done.architecture.num_classes
    if args.json:
        print_json(
            {
                "architecture": args.out,
                "weights": str(done.architecture.weights),
                "name": done.architecture.name,
                "num_classes": kept,
                "outputs": done.outputs,
                "left_out": list(done.left_out),
            }
        )
        return 0
    print(f"wrote {args.out} and {done.architecture.weights}")
    if done.outputs != kept:
        print(f"kept the first {kept} of the classifier's {done.outputs} outputs")
    if done.left_out:
        print(f"left out, not read: {', '.join(done.left_out)}")
    return 0
