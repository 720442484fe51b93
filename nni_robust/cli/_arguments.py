"""Arguments that several verbs share, and what they mean.

Imported by every verb, also for ``--help``: nothing heavy at the top.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.threat import ThreatModel

__all__ = [
    "ARCH_HELP",
    "DATASET",
    "add_data",
    "add_json",
    "add_overrides",
    "add_seed",
    "add_threads",
    "add_threat",
    "assignments",
    "natural",
    "port_number",
    "positive",
    "progress_home",
    "refuse_given",
    "set_threads",
    "threat_of",
    "writable_folder",
]

#: Data where nothing else says which.
DATASET = "digits"

ARCH_HELP = (
    "a name that 'nni-robust archs' lists, an architecture file (YAML or JSON), or a folder of "
    "'nni-robust run' (its winner), 'train' or 'export'"
)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def natural(text: str) -> int:
    """A whole number from 0, for argparse."""
    number = _whole(text)
    if number is None or number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; a whole number from 0 is")
    return number


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = _whole(text)
    if number is None or number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; a whole number above 0 is")
    return number


def port_number(text: str) -> int:
    """A TCP port, for argparse."""
    number = _whole(text)
    if number is None or not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; a port from 1 to 65535 is")
    return number


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: the result as one JSON document on standard output."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )


def add_overrides(parser: argparse.ArgumentParser, what: str) -> None:
    """``--set``: changes of single settings; `what` says of which, with an example."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one {what}; may be repeated",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``: how many CPU threads torch may use."""
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads of torch (default: torch's own)"
    )


def set_threads(args: argparse.Namespace) -> None:
    """Follow ``--threads`` where it was given."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``."""
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="of everything random (default 0)"
    )


def add_data(parser: argparse.ArgumentParser, *, of_training: bool = False) -> None:
    """``--dataset`` and ``--root``.

    With `of_training` the default is None, for :func:`nni_robust.cli._origin.fill_from_training`.
    """
    default = "digits"
    if of_training:
        default = "that of the network's training where its folder tells it, else digits"
    parser.add_argument(
        "--dataset",
        default=None if of_training else DATASET,
        metavar="NAME",
        help="digits, cifar10, cifar100, svhn, tiny-imagenet, imagenet, or image-folder:PATH "
        f"(default {default})",
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder of the data (default: $NNI_ROBUST_DATA, else ./data)"
    )


def add_threat(parser: argparse.ArgumentParser, default: str = "8/255", norm: str = "linf") -> None:
    """``--eps`` and ``--norm``; `default` and `norm` say where they come from if not given."""
    parser.add_argument(
        "--eps",
        metavar="E",
        help="attack strength in pixel units, 0 to 1 for linf; may be a fraction "
        f"(default {default})",
    )
    parser.add_argument("--norm", metavar="NORM", help=f"linf or l2 (default {norm})")


def threat_of(args: argparse.Namespace, default: ThreatModel | None = None) -> ThreatModel:
    """The threat model that ``--eps`` and ``--norm`` ask for; what they leave open is `default`'s.

    None is L∞ 8/255.
    """
    from nni_robust.config import parse
    from nni_robust.threat import ThreatModel

    open_to = default or ThreatModel()
    norm = open_to.norm if args.norm is None else args.norm
    eps = open_to.eps if args.eps is None else args.eps
    return parse(ThreatModel, {"norm": norm, "eps": eps}, "threat")


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``["epochs=2", "attack.steps=3"]`` into ``{"epochs": 2, "attack": {"steps": 3}}``.

    Values are read as YAML, so ``true``, ``[1, 2]`` and ``null`` mean what they do in a file.

    Raises
    ------
    UserError
        If a pair has no ``=``, its value is not YAML, or a key is both a value and a section.
    """
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f"--set {pair!r} is not allowed; write key=value or section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {pair!r}: {text!r} is not a YAML value") from None
        section = found
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise UserError(f"--set {pair!r}: '{part}' was set to a value before")
        section[parts[-1]] = value
    return found


def refuse_given(args: argparse.Namespace, options: Sequence[str], why: str) -> None:
    """Refuse the first of some options that was given: `why` ends the sentence.

    Raises
    ------
    UserError
        Naming the option and its value.
    """
    for option in options:
        value = getattr(args, option.lstrip("-").replace("-", "_"))
        if value is not None:
            raise UserError(f"{option} '{value}' {why}")


def progress_home(path: str) -> Path:
    """The folder of ``--folder``: writable, and empty or an evaluation's.

    Raises
    ------
    UserError
        If it is anything else.
    """
    from nni_robust._resuming import refuse_other_files

    refuse_other_files(path, "--folder")
    return writable_folder(path, "--folder")


def writable_folder(path: str, option: str = "--out") -> Path:
    """The folder, made where missing; refused in one sentence where it cannot be written.

    Raises
    ------
    UserError
        If it is a file, or cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".nni-robust-probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"{option} '{path}' cannot be written: {e.strerror}") from None
    return folder
