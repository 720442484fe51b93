"""What networks were trained on, as the defaults of ``--dataset``, ``--eps`` and ``--norm``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import DATASET
from nni_robust.cli._console import say
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.threat import ThreatModel

__all__ = ["Origin", "fill_from_training", "origin_of"]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the records of a trained network say.

    Parameters
    ----------
    dataset
        Name of its data, as ``--dataset`` takes it. Where its files lay is not recorded.
    threat
        What it was trained, or a run's networks were judged, against; None where unknown.
    """

    dataset: str
    threat: ThreatModel | None


def origin_of(arch: str) -> Origin | None:
    """The data and threat that a trained network's folder or file tells; None where none does."""
    from nni_robust._teacher import ROBUSTBENCH
    from nni_robust.architecture import load_architecture
    from nni_robust.config import parse
    from nni_robust.exchange import read_trained
    from nni_robust.threat import ThreatModel

    if arch.startswith(ROBUSTBENCH) or not load_architecture(arch).trained:
        return None
    try:
        training = read_trained(arch).training or {}
        data, threat = training.get("data"), training.get("threat")
        name = data.get("name") if isinstance(data, Mapping) else None
        if not isinstance(name, str):
            return None
        known = {key: threat.get(key) for key in ("norm", "eps")} if threat else None
        return Origin(name, None if known is None else parse(ThreatModel, known, "threat"))
    except UserError as e:
        say(f"what '{arch}' was trained on cannot be read: {e}")
        return None


def fill_from_training(
    args: argparse.Namespace, archs: Sequence[str], *, attacks: bool = True, strengths: bool = False
) -> None:
    """Give ``--dataset``, ``--eps`` and ``--norm`` that were left open their values.

    They are those of the networks' training; where none is recorded, the command line's defaults.
    One line on standard error says which, and one where a network was trained on other data.

    Parameters
    ----------
    args
        Changed in place. Of the threat, what stays None is :func:`threat_of`'s default. A radius
        is taken over only with its norm.
    archs
        The networks.
    attacks
        Whether a threat is wanted.
    strengths
        Whether radii are given by another option, so that only a norm is wanted.

    Raises
    ------
    UserError
        If networks were trained on different data, or against different threats, and no option
        says which.
    """
    own_weights = getattr(args, "weights", None) is not None
    origins = {} if own_weights else {arch: origin_of(arch) for arch in archs}
    known = {arch: origin for arch, origin in origins.items() if origin is not None}
    from_training: list[tuple[str, str]] = []
    if args.dataset is None:
        found = _one({arch: o.dataset for arch, o in known.items()}, "was trained on", "--dataset")
        args.dataset = found or DATASET
        if found:
            from_training.append(("data set", found))
        elif own_weights:
            say(f"data set: {DATASET} (the default; a file of weights does not tell its own)")
    for arch, origin in known.items():
        if origin.dataset != args.dataset:
            say(f"note: '{arch}' was trained on {origin.dataset}; the pictures are {args.dataset}")
    if attacks:
        threats = {arch: o.threat for arch, o in known.items() if o.threat is not None}
        from_training += _fill_threat(args, threats, strengths)
    if from_training:
        what, values = zip(*from_training, strict=True)
        whose = "its" if len(archs) == 1 else "their"
        say(f"{' and '.join(what)} from {whose} training: {', '.join(values)}")


def _fill_threat(
    args: argparse.Namespace, threats: Mapping[str, ThreatModel], strengths: bool
) -> list[tuple[str, str]]:
    """Norm and radius that were left open; what to tell of them."""
    norm = args.norm
    if norm is None:
        norms = {arch: threat.norm for arch, threat in threats.items()}
        norm = args.norm = _one(norms, "was trained in", "--norm")
    radii = {arch: threat for arch, threat in threats.items() if threat.norm == norm}
    if args.eps is None and not strengths and radii:
        threat = _one(radii, "was trained against", "--eps")
        args.eps = repr(float(threat.eps))
        return [("threat", str(threat))]
    told = threats and norm != "linf" and norm == next(iter(threats.values())).norm
    return [("norm", str(norm))] if told else []


def _one(values: Mapping[str, Any], what: str, option: str) -> Any:
    """The value that all share; None where there is none."""
    several = dict(zip(map(str, values.values()), values.items(), strict=True))
    if len(several) > 1:
        told = [f"'{arch}' {what} {value}" for arch, value in several.values()]
        raise UserError(f"{', '.join(told)}; {option} says what to use for all")
    return next(iter(values.values()), None)
