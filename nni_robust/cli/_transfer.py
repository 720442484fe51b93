"""``nni-robust transfer``: black-box accuracy of networks on each other's adversarial examples."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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
from nni_robust.cli._console import print_json, print_table, progress, say
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.transfer import TransferTable

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Craft adversarial examples on every source and count what every target classifies "
        "correctly. Where source and target are one network, that is the white-box accuracy; for "
        "the black-box accuracy of a network train it twice, with two seeds."
    )
    parser.add_argument("targets", nargs="+", metavar="ARCH", help=f"target: {ARCH_HELP}")
    parser.add_argument(
        "--sources",
        nargs="+",
        metavar="ARCH",
        help="networks to craft examples on (default: the targets)",
    )
    add_data(parser, of_training=True)
    parser.add_argument(
        "--split",
        choices=["test", "validation"],
        default="test",
        help="which pictures (default test; a search decides on validation)",
    )
    parser.add_argument(
        "--attack", default="pgd100", metavar="NAME", help="such as fgsm or pgd20 (default pgd100)"
    )
    add_threat(parser, "that of their training where known, else 8/255", "likewise, else linf")
    parser.add_argument("--limit", type=positive, metavar="N", help="use only the first N pictures")
    parser.add_argument(
        "--batch-size", type=positive, default=256, metavar="N", help="pictures at a time (256)"
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="keep there, batch by batch, what came of each source's examples; the same command "
        "goes on after a kill",
    )
    parser.add_argument(
        "--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:1, …"
    )
    add_threads(parser)
    add_seed(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Build every network once, attack, print the table."""
    threat_of(args)  # a wrong radius is told before anything is read
    from nni_robust.architecture import load_architecture
    from nni_robust.attacks import NonFiniteOutput, attack_from_spec
    from nni_robust.cli._network import build_network, find_device, threat_json
    from nni_robust.cli._origin import fill_from_training
    from nni_robust.data import load_dataset
    from nni_robust.transfer import transfer_table

    set_threads(args)
    device = find_device(args.device)
    targets, sources = args.targets, args.sources or args.targets
    for key, names in (("ARCH", targets), ("--sources", sources)):
        if len(set(names)) < len(names):
            raise UserError(f"{key}: {', '.join(names)} names a network twice")
    if args.folder is not None:
        progress_home(args.folder)
    fill_from_training(args, list(dict.fromkeys([*targets, *sources])))
    threat = threat_of(args)
    attack = attack_from_spec(args.attack, threat)  # a wrong name is told before the data is read
    architectures = {name: load_architecture(name) for name in [*targets, *sources]}
    data = load_dataset(args.dataset, root=args.root, test=args.split == "test")
    images = data.test if args.split == "test" else data.validation
    networks = {
        name: build_network(architecture, data, seed=args.seed).to(device)
        for name, architecture in architectures.items()
    }
    untrained = [name for name, found in architectures.items() if not found.trained]
    if untrained:
        say(f"untrained weights: {', '.join(untrained)}")
    total = min(len(images), args.limit or len(images)) * (1 + len(sources))
    done: dict[str, int] = {}
    with progress("attacking", total) as advance:

        def report(pictures: int, of: int | None, stage: str) -> None:
            done[stage] = pictures
            advance(sum(done.values()))

        try:
            table = transfer_table(
                {name: networks[name] for name in sources},
                {name: networks[name] for name in targets},
                images,
                attack,
                batch_size=args.batch_size,
                limit=args.limit,
                seed=args.seed,
                progress=report,
                folder=args.folder,
            )
        except NonFiniteOutput as e:
            raise UserError(f"{e}, so no accuracy can be measured") from None
    if args.json:
        print_json(
            {
                "dataset": data.name,
                "split": args.split,
                "pictures": table.n,
                "attack": table.attack,
                "threat": threat_json(threat),
                "seed": args.seed,
                "untrained": untrained,
                "clean": table.clean,
                "accuracy": table.accuracy,
                "unreliable": table.unreliable,
                "reliability": {
                    "sources": {name: one.as_dict() for name, one in table.sources.items()},
                    "targets": {name: one.as_dict() for name, one in table.targets.items()},
                },
            }
        )
        return 0
    print(f"{table.attack}, {table.n} {args.split} pictures of {data.name}; a column is a source")
    _print(table)
    for reason in table.unreliable:
        print(f"UNRELIABLE: {reason}")
    return 0


def _print(table: TransferTable) -> None:
    sources = list(next(iter(table.accuracy.values())))
    rows = [
        [target, f"{table.clean[target]:.2%}", *(f"{value:.2%}" for value in row.values())]
        for target, row in table.accuracy.items()
    ]
    print_table(["target", "clean", *sources], rows)
