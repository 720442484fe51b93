"""``nni-robust evaluate --corruptions``: accuracy on corrupted pictures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nni_robust.cli._arguments import progress_home, refuse_given, set_threads
from nni_robust.cli._console import print_json, print_table, progress
from nni_robust.cli._reliability import print_reliability
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.corruptions import CorruptionResult

__all__ = ["add_corruptions", "check_corruptions", "execute_corruptions"]

_SEVERITIES = "1,2,3,4,5"


def add_corruptions(parser: argparse.ArgumentParser) -> None:
    """``--corruptions`` and ``--severities``."""
    parser.add_argument(
        "--corruptions",
        nargs="?",
        const="standard",
        metavar="LIST",
        help="attack nothing: corrupt the pictures, by the fifteen corruptions of CIFAR-10-C and "
        "ImageNet-C (standard; so it is without LIST), by all that there are (all), or by some, "
        "such as fog,jpeg_compression",
    )
    parser.add_argument(
        "--severities",
        metavar="LIST",
        help="of 1 to 5, for --corruptions (default 1,2,3,4,5)",
    )


def check_corruptions(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything is read."""
    if args.corruptions is None:
        if args.severities is not None:
            raise UserError(f"--severities '{args.severities}' needs --corruptions")
        return
    if args.strengths is not None:
        raise UserError("--strengths and --corruptions measure different things; give one")
    if args.thorough:
        raise UserError("--thorough is not allowed with --corruptions, which attacks nothing")
    given = ("--attacks", "--eps", "--norm")
    refuse_given(args, given, "is not allowed with --corruptions, which attacks nothing")
    _wanted(args)


def _wanted(args: argparse.Namespace) -> tuple[tuple[str, ...], list[int]]:
    """Names and severities that are asked for."""
    from nni_robust.corruptions import names_of

    text = args.corruptions
    found = names_of(text if text in ("standard", "all") else _parts(text))
    levels = _SEVERITIES if args.severities is None else args.severities
    severities = _parts(levels)
    if not severities or set(severities) - set(_parts(_SEVERITIES)):
        raise UserError(f"--severities '{levels}' is not allowed; of 1 to 5 at least one is")
    return found, [int(level) for level in severities]


def execute_corruptions(args: argparse.Namespace) -> int:
    """Check everything, corrupt, count, print."""
    from nni_robust.attacks import NonFiniteOutput
    from nni_robust.cli._network import find_device, open_network
    from nni_robust.cli._origin import fill_from_training
    from nni_robust.corruptions import evaluate_corruptions

    set_threads(args)
    device = find_device(args.device)
    wanted, severities = _wanted(args)
    if args.folder is not None:
        progress_home(args.folder)
    fill_from_training(args, args.arch, attacks=False)
    opened = open_network(args, device)
    total = min(len(opened.images), args.limit or len(opened.images)) * (1 + len(wanted))
    done: dict[str, int] = {}
    with progress("corrupting", total) as advance:

        def report(pictures: int, of: int | None, stage: str) -> None:
            done[stage] = pictures
            advance(sum(done.values()))

        try:
            result = evaluate_corruptions(
                opened.network,
                opened.images,
                wanted,
                severities,
                batch_size=args.batch_size,
                device=device,
                limit=args.limit,
                seed=args.seed,
                progress=report,
                folder=args.folder,
            )
        except NonFiniteOutput as e:
            raise UserError(f"{e}, so no accuracy can be measured") from None
    if args.json:
        about = {"architecture": opened.name, "trained": opened.trained}
        print_json({**about, "dataset": opened.data, "split": args.split, **result.as_dict()})
        return 0
    state = "" if opened.trained else " (untrained weights)"
    print(
        f"{opened.name}{state}, {result.n} {args.split} pictures of {opened.data}, corruptions of "
        f"{'CIFAR-10-C' if result.scale == 'cifar' else 'ImageNet-C'}'s strengths"
    )
    _print(result)
    return 0


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print(result: CorruptionResult) -> None:
    levels = list(next(iter(result.accuracy.values())))
    rows = [["clean", *[""] * len(levels), f"{result.clean:.2%}"]]
    for name, found in result.accuracy.items():
        cells = [f"{value:.2%}" for value in found.values()]
        rows.append([name, *cells, f"{result.mean_of(name):.2%}"])
    print_table(["corruption", *map(str, levels), "mean"], rows)
    over = "" if result.is_standard else " (not all of the benchmark's fifteen, five severities)"
    print(f"mean {result.mean:.2%}, mean corruption error {result.mean_error:.2%}{over}")
    if result.note is not None:
        print(result.note)
    print_reliability(result.reliability)
