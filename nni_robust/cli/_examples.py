"""``nni-robust evaluate --save-examples`` and ``--examples-from``: claims, and checking them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import positive, refuse_given, set_threads, writable_folder
from nni_robust.cli._console import print_json, print_table, say
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from nni_robust.adversarial import AdversarialExamples
    from nni_robust.evaluation import Evaluation

__all__ = [
    "add_examples",
    "check_examples",
    "execute_verification",
    "kept_examples",
    "print_examples",
    "save_examples",
]

_PATTERN = "*.safetensors"
_DEFAULT = 100  # examples of each attack
_NO_ATTACK = "which attacks nothing"


def add_examples(parser: argparse.ArgumentParser) -> None:
    """``--save-examples``, ``--examples`` and ``--examples-from``."""
    parser.add_argument(
        "--save-examples",
        metavar="DIR",
        help="write adversarial pictures of each attack into this folder (safetensors), each "
        "verified in float32; breaks that float32 refutes do not count",
    )
    parser.add_argument(
        "--examples",
        type=_how_many,
        metavar="N",
        help="the first so many of each attack, or 'all' (default 100), for --save-examples",
    )
    parser.add_argument(
        "--examples-from",
        metavar="DIR",
        help="attack nothing: verify the adversarial pictures in this folder (or file) on ARCH",
    )


def _how_many(text: str) -> Any:
    try:
        return "all" if text == "all" else positive(text)
    except argparse.ArgumentTypeError as e:
        raise argparse.ArgumentTypeError(f"{e}, or 'all'") from None


def check_examples(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything is read."""
    if args.save_examples is not None:
        for other in ("strengths", "corruptions"):
            if getattr(args, other) is not None:
                raise UserError(f"--save-examples is not allowed with --{other}")
        if args.examples_from is not None:
            raise UserError("--save-examples and --examples-from do different things; give one")
        writable_folder(args.save_examples, "--save-examples")
    elif args.examples is not None:
        raise UserError(f"--examples {args.examples} needs --save-examples")
    if args.examples_from is not None:
        for other in ("strengths", "plot", "corruptions", "thorough"):
            if getattr(args, other) not in (None, False):
                raise UserError(f"--{other} is not allowed with --examples-from, {_NO_ATTACK}")
        refuse_given(
            args,
            ("--attacks", "--limit", "--eps", "--norm"),
            f"is not allowed with --examples-from, {_NO_ATTACK}",
        )
        refuse_given(
            args,
            ("--dataset", "--root"),
            "is not allowed with --examples-from, which brings its pictures",
        )
        if args.precision != "float32":
            raise UserError(
                f"--precision '{args.precision}' is not allowed with --examples-from, {_NO_ATTACK}"
            )


def kept_examples(args: argparse.Namespace) -> Any:
    """How many adversarial pictures of each attack to keep; None keeps none."""
    if args.save_examples is None:
        return None
    return _DEFAULT if args.examples is None else args.examples


def save_examples(
    args: argparse.Namespace, network: str, result: Evaluation
) -> dict[str, dict[str, Any]]:
    """Write what was kept; the files and counts by the attack's key."""
    saved = {}
    for key, one in result.attacks.items():
        if one.examples is not None:
            found = dataclasses.replace(one.examples, network=network)
            saved[key] = {
                "file": str(found.save(args.save_examples)),
                "saved": len(found),
                "broken": found.broken,
                "refuted": found.refuted,
            }
    return saved


def print_examples(saved: dict[str, dict[str, Any]]) -> None:
    """A line for each file, and one for what float32 refuted."""
    for key, one in saved.items():
        print(f"{one['saved']} of {one['broken']} adversarial pictures of {key} in {one['file']}")
        if one["refuted"]:
            print(
                f"REFUTED: {one['refuted']} pictures that {key} claims to break lie outside the "
                "ball, or fool the network in another precision only; they count as not broken"
            )


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What files say of the pictures, for building a network."""

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]


def execute_verification(args: argparse.Namespace) -> int:
    """Verify every file of the folder; 1 if an example does not hold."""
    from nni_robust.adversarial import AdversarialExamples
    from nni_robust.attacks import NonFiniteOutput

    if len(args.arch) > 1:
        raise UserError(f"ARCH: {', '.join(args.arch)}: --examples-from verifies one network")
    set_threads(args)
    where = Path(args.examples_from)
    files = [where] if where.is_file() else sorted(where.glob(_PATTERN))
    if not files:
        raise UserError(f"--examples-from '{where}': there is no {_PATTERN}")
    found = {file: AdversarialExamples.load(file) for file in files}
    network = _network(args, str(where), found)
    try:
        answer = {file.name: _verified(network, one, args) for file, one in found.items()}
    except NonFiniteOutput as e:
        raise UserError(f"{e}, so no example can be verified") from None
    good = all(one["holds"] == one["examples"] for one in answer.values())
    if args.json:
        print_json({"architecture": args.arch[0], "holds": good, "files": answer})
        return 0 if good else 1
    if not all(one["same_network"] for one in answer.values()):
        say("the examples were made for a network with other weights")
    columns = ["examples", "holds", "outside", "resisted", "clean_wrong"]
    rows = [
        [one["attack"], one["threat"], *(str(one[column]) for column in columns)]
        for one in answer.values()
    ]
    header = [column.replace("_", " ") for column in columns]
    print_table(["attack", "threat", *header], rows)
    if not any(map(len, found.values())):
        print("0 examples: there is nothing to verify")
    else:
        print("verified: every example holds" if good else "REFUTED: not every example holds")
    return 0 if good else 1


def _network(
    args: argparse.Namespace, where: str, found: dict[Path, AdversarialExamples]
) -> nn.Module:
    from nni_robust._teacher import ROBUSTBENCH
    from nni_robust.architecture import load_architecture
    from nni_robust.cli._network import build_network, find_device, robustbench_network

    some = next((one for one in found.values() if len(one)), next(iter(found.values())))
    device, name = find_device(args.device), args.arch[0]
    foreign = name.startswith(ROBUSTBENCH)
    architecture = None if foreign else load_architecture(name)
    own = 10 if architecture is None else architecture.num_classes
    classes = len(some.classes) or own
    shape = (3, 32, 32) if architecture is None else architecture.input_shape
    if len(some):  # without examples nothing tells the size of the pictures
        channels, height, width = some.clean.shape[1:]
        shape = (channels, height, width)
    pictures = _Shown(where, classes, shape)
    if architecture is None:
        return robustbench_network(name, pictures, args.weights).to(device)
    if args.weights is None and not architecture.trained:
        say(f"untrained weights: '{name}' comes without any; --weights FILE gives some")
    network = build_network(
        architecture, pictures, seed=args.seed, weights=args.weights, option="--examples-from"
    )
    return network.to(device)


def _verified(
    network: nn.Module, examples: AdversarialExamples, args: argparse.Namespace
) -> dict[str, Any]:
    from nni_robust.adversarial import verify_examples

    told = verify_examples(network, examples, batch_size=args.batch_size)
    return {
        "attack": examples.attack,
        "threat": str(examples.threat),
        "pictures": examples.pictures,
        "broken": examples.broken,
        "examples": len(examples),
        "holds": int(told.holds.sum()),
        "outside": int(told.outside.sum()),
        "resisted": int(told.resisted.sum()),
        "clean_wrong": int(told.clean_wrong.sum()),
        "same_network": told.same_network,
    }
