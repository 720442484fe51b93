"""From an architecture and data to a network with its weights, and how it does under attack."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nni_robust.cli._console import print_table, progress, say
from nni_robust.cli._reliability import print_reliability
from nni_robust.errors import UserError
from nni_robust.evaluation import Evaluation, NonFiniteOutput, evaluate

if TYPE_CHECKING:
    from torch import nn

    from nni_robust.architecture import Architecture
    from nni_robust.data import Images
    from nni_robust.threat import ThreatModel

__all__ = [
    "Opened",
    "Pictures",
    "attack_and_count",
    "build_network",
    "find_device",
    "open_network",
    "print_accuracies",
    "robustbench_network",
    "threat_json",
]


class Pictures(Protocol):
    """What a network is built for, such as :class:`nni_robust.data.DataSplits`."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...


def find_device(name: str) -> torch.device:
    """The device called `name`; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    UserError
        If torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"--device '{name}' cannot be used here: {reason}") from None
    return device


@dataclasses.dataclass(frozen=True)
class Opened:
    """One network on its device, and the pictures to show it.

    Parameters
    ----------
    network, images
        What is evaluated, and on what.
    name, data
        What both are called.
    trained
        Whether the weights are not fresh ones.
    """

    network: nn.Module
    images: Images
    name: str
    data: str
    trained: bool


def open_network(args: argparse.Namespace, device: torch.device) -> Opened:
    """What ``ARCH``, ``--weights``, ``--dataset``, ``--root``, ``--split`` and ``--seed`` ask for.

    Raises
    ------
    UserError
        If something is missing or does not fit.
    """
    from nni_robust._teacher import ROBUSTBENCH
    from nni_robust.architecture import load_architecture
    from nni_robust.data import load_dataset

    name = args.arch[0]
    architecture = None if name.startswith(ROBUSTBENCH) else load_architecture(name)
    data = load_dataset(args.dataset, root=args.root, test=args.split == "test")
    images = data.test if args.split == "test" else data.validation
    trained = True
    if architecture is None:
        network = robustbench_network(name, data, args.weights)
    else:
        network = build_network(architecture, data, seed=args.seed, weights=args.weights)
        name, trained = architecture.name, args.weights is not None or architecture.trained
    if not trained:
        say(f"untrained weights: '{name}' comes without any; --weights FILE gives some")
    return Opened(network.to(device), images, name, data.name, trained)


def build_network(
    architecture: Architecture,
    data: Pictures,
    *,
    seed: int,
    weights: str | None = None,
    pretrained: bool = True,
    option: str = "--dataset",
) -> nn.Module:
    """The network for the data's classes; fresh weights depend on the seed.

    Parameters
    ----------
    architecture, data
        What to build, and for which classes and pictures.
    seed
        Of fresh weights.
    weights
        File of weights to load in place of the architecture's own.
    pretrained
        Load the architecture's own weights, if it has any.
    option
        What says which pictures, for messages.

    Raises
    ------
    UserError
        If weights do not fit, or the network does not take pictures of that size.
    """
    own = pretrained and weights is None and architecture.trained
    if own and architecture.num_classes != data.num_classes:
        raise UserError(
            f"'{architecture.name}' was trained for {architecture.num_classes} classes, but "
            f"'{data.name}' has {data.num_classes}: {option} must fit"
        )
    torch.manual_seed(seed)
    network = architecture.build(data.num_classes, pretrained=pretrained and weights is None)
    if weights is not None:
        from nni_robust.training import load_weights

        load_weights(network, weights)
    return _fitting(network, architecture.name, data)


def robustbench_network(name: str, data: Pictures, weights: str | None = None) -> nn.Module:
    """The network ``robustbench:NAME``, with its package's weights for the data's classes.

    Raises
    ------
    UserError
        If other weights are asked for, the package is missing or knows no such network, or it does
        not take pictures of that size.
    """
    from nni_robust._teacher_loading import from_robustbench

    if weights is not None:
        raise UserError(f"--weights '{weights}' is not allowed with '{name}', which brings its own")
    return _fitting(from_robustbench(name, data.num_classes, "network"), name, data)


def _fitting(network: nn.Module, name: str, data: Pictures) -> nn.Module:
    """The network, once it has shown that it takes the pictures."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *data.input_shape))
    except (RuntimeError, ValueError) as e:
        shape = "×".join(map(str, data.input_shape))
        raise UserError(
            f"'{name}' does not take the pictures of '{data.name}' ({shape}): "
            f"{str(e).splitlines()[0]}"
        ) from None
    return network.train(training)


def attack_and_count(
    network: nn.Module,
    images: Images,
    attacks: Sequence[str],
    threat: ThreatModel,
    **settings: Any,
) -> Evaluation:
    """:func:`nni_robust.evaluate` with a progress bar on a terminal.

    Raises
    ------
    UserError
        As there, and if the network's output is not finite.
    """
    total = min(len(images), settings.get("limit") or len(images)) * (1 + len(attacks))
    done: dict[str, int] = {}
    with progress("attacking", total) as advance:

        def report(pictures: int, of: int | None, stage: str) -> None:
            done[stage] = pictures
            advance(sum(done.values()))

        try:
            return evaluate(network, images, attacks, threat=threat, progress=report, **settings)
        except NonFiniteOutput as e:
            raise UserError(f"{e}, so no accuracy can be measured") from None


def print_accuracies(result: Evaluation) -> None:
    """One line per attack; with several, the share that withstands all; what is unreliable."""
    rows = [["clean", f"{result.clean:.2%}", ""]]
    rows += [[key, f"{a.accuracy:.2%}", f"{a.seconds:.1f}"] for key, a in result.attacks.items()]
    if len(result.attacks) > 1:
        rows.append(["all attacks", f"{result.worst:.2%}", f"{result.seconds:.1f}"])
    print_table(["attack", "accuracy", "seconds"], rows)
    print_reliability(result.reliability)


def threat_json(threat: ThreatModel) -> dict[str, Any]:
    """``{"norm": "linf", "eps": 0.0314}``."""
    return {"norm": threat.norm, "eps": threat.eps}
