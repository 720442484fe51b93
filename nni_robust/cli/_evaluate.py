"""``nni-robust evaluate``: clean and robust accuracy of one network."""

from __future__ import annotations

import argparse
from pathlib import Path

from nni_robust.cli._arguments import (
    ARCH_HELP,
    add_data,
    add_json,
    add_seed,
    add_threads,
    add_threat,
    positive,
    progress_home,
    set_threads,
    threat_of,
)
from nni_robust.cli._console import print_json
from nni_robust.cli._corruptions import add_corruptions, check_corruptions, execute_corruptions
from nni_robust.cli._examples import (
    add_examples,
    check_examples,
    execute_verification,
    kept_examples,
    print_examples,
    save_examples,
)
from nni_robust.cli._reliability import add_thorough
from nni_robust.cli._strengths import add_strengths, execute_strengths
from nni_robust.errors import UserError

__all__ = ["add_arguments", "add_attacks", "execute", "fill_attacks", "names"]

_ATTACKS, _BATCH_SIZE = "fgsm,pgd20", 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Attack a network and print the share of pictures that it classifies correctly. "
        "A picture that is misclassified without an attack counts as broken under every attack."
    )
    parser.add_argument(
        "arch",
        nargs="+",
        metavar="ARCH",
        help=f"{ARCH_HELP}; or robustbench:NAME; several (none of RobustBench) with --strengths",
    )
    add_data(parser, of_training=True)
    parser.add_argument(
        "--split",
        choices=["test", "validation"],
        default="test",
        help="which pictures (default test; a search decides on validation)",
    )
    add_attacks(parser)
    add_threat(parser, "that of its training where known, else 8/255", "likewise, else linf")
    add_strengths(parser)
    add_thorough(parser)
    add_examples(parser)
    add_corruptions(parser)
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights of the network (.safetensors, .pt, .pth) in place of the architecture's own",
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="keep there, batch by batch, which pictures each attack (strength, corruption) has "
        "had and what came of it; the same command goes on after a kill",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16"],
        default="float32",
        help="what gradient attacks compute in (default float32, which confirms every break)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:1, …"
    )
    add_threads(parser)
    add_seed(parser)
    add_json(parser)


def add_attacks(parser: argparse.ArgumentParser) -> None:
    """``--attacks``, ``--limit`` and ``--batch-size``, as ``train --evaluate`` has them too."""
    parser.add_argument(
        "--attacks",
        metavar="LIST",
        help="names with commas between them, such as fgsm,pgd20,torchattacks:PGD; the number is "
        f"that of the steps (default {_ATTACKS})",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="attack only the first N pictures"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help=f"pictures at a time (default {_BATCH_SIZE})",
    )


def fill_attacks(args: argparse.Namespace) -> None:
    """What :func:`add_attacks` left open; before it, None says that an option was not given."""
    args.attacks = _ATTACKS if args.attacks is None else args.attacks
    args.batch_size = args.batch_size or _BATCH_SIZE


def names(text: str) -> list[str]:
    """``"fgsm, pgd20"`` -> ``["fgsm", "pgd20"]``; empty for clean accuracy alone."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_folder(args: argparse.Namespace) -> None:
    """Refuse a ``--folder`` that is something else's."""
    if args.folder is None or args.save_examples is None:
        return
    if Path(args.folder) == Path(args.save_examples):
        raise UserError(f"--folder and --save-examples are both '{args.folder}'; give two folders")


def execute(args: argparse.Namespace) -> int:
    """Attack, count, print."""
    check_examples(args)
    check_corruptions(args)
    fill_attacks(args)
    if args.examples_from is not None:
        if args.folder is not None:
            raise UserError("--folder is not allowed with --examples-from, which attacks nothing")
        return execute_verification(args)
    _check_folder(args)
    if args.precision != "float32" and (args.strengths or args.corruptions) is not None:
        given = "--strengths" if args.strengths is not None else "--corruptions"
        raise UserError(f"--precision '{args.precision}' is not allowed with {given}")
    if args.strengths is not None:
        return execute_strengths(args, names(args.attacks))
    if len(args.arch) > 1 or args.plot:
        raise UserError(
            f"--plot '{args.plot}' needs --strengths"
            if args.plot
            else f"ARCH: {', '.join(args.arch)} needs --strengths; without it one network is"
            " evaluated"
        )
    if args.corruptions is not None:
        return execute_corruptions(args)
    threat_of(args)  # a wrong radius is told before anything is read
    from nni_robust.attacks import attack_from_spec
    from nni_robust.cli._network import (
        attack_and_count,
        find_device,
        open_network,
        print_accuracies,
        threat_json,
    )
    from nni_robust.cli._origin import fill_from_training

    set_threads(args)
    device = find_device(args.device)
    attacks = names(args.attacks)
    if args.folder is not None:
        progress_home(args.folder)
    fill_from_training(args, args.arch)
    threat = threat_of(args)
    for name in attacks:  # a wrong name is told before the data is read
        attack_from_spec(name, threat)
    opened = open_network(args, device)
    result = attack_and_count(
        opened.network,
        opened.images,
        attacks,
        threat,
        batch_size=args.batch_size,
        device=device,
        limit=args.limit,
        seed=args.seed,
        thorough=args.thorough,
        precision=args.precision,
        keep=kept_examples(args),
        folder=args.folder,
    )
    files = save_examples(args, opened.name, result)
    if args.json:
        print_json(
            {
                "architecture": opened.name,
                "trained": opened.trained,
                "dataset": opened.data,
                "split": args.split,
                "pictures": result.n,
                "threat": threat_json(threat),
                "seed": args.seed,
                "precision": args.precision,
                "metrics": result.metrics(),
                "all_attacks": result.worst,
                "reliability": result.reliability.as_dict(),
                **({"examples": files} if files else {}),
                "seconds": result.seconds,
            }
        )
        return 0
    state = "" if opened.trained else " (untrained weights)"
    print(f"{opened.name}{state}, {result.n} {args.split} pictures of {opened.data}, {threat}")
    print_accuracies(result)
    print_examples(files)
    return 0
