"""Checks of attacks: what they need of a network, and how they hold it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from nni_robust.attacks import Attack
from nni_robust.reliability._checks import Check, failed, not_run, passed

__all__ = ["attack_mode", "broken_alone", "few_classes", "is_black_box"]

# Attacks that ask for answers only, by their registered or torchattacks name.
_BLACK_BOX = {"square", "spsa", "onepixel", "pixle", "gn", "transfer"}
# Attacks whose losses rank logits: least number of classes.
_DLR, _TARGETED_DLR = 3, 4
_AIMS = {"apgdt", "autoattack", "autoattacklight"}


def _kinds(attack: Attack) -> set[str]:
    """What an attack is called, wherever it says so: ``{"pgd"}``, ``{"apgdt", "torchattack"}``."""
    cls: Any = getattr(attack, "_class", None)
    found = (
        getattr(attack, "name", None),
        getattr(cls, "__name__", None),
        type(attack).__name__,
        attack.label.replace("torchattacks:", ""),
    )
    plain = (re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in found if name)
    return {re.sub(r"[0-9].*", "", name) for name in plain}


def is_black_box(attack: Attack) -> bool:
    """Whether an attack works without gradients: it says ``black_box``, or its name does."""
    says = getattr(attack, "black_box", None)
    return bool(says) if says is not None else not _BLACK_BOX.isdisjoint(_kinds(attack))


def broken_alone(attack: Attack) -> int | None:
    """Pictures that only black-box parts of an attack broke so far, where it has both kinds."""
    parts, breaks = getattr(attack, "parts", None), getattr(attack, "breaks", None)
    if not parts or breaks is None:
        return None
    black = [is_black_box(part) for part in parts]
    if all(black) or not any(black):
        return None
    return sum(int(count) for count, alone in zip(breaks, black, strict=True) if alone)


def _setting(attack: Attack, name: str) -> Any:
    """A setting of an attack, whether it keeps them as a mapping or as fields."""
    settings = getattr(attack, "settings", None)
    return settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)


def few_classes(attacks: Iterable[Attack], classes: int) -> Check:
    """Whether a network has enough classes for the losses of the attacks that ran."""
    problems = []
    for attack in attacks:
        kinds = _kinds(attack)
        ranks = _setting(attack, "loss") == "dlr" or "apgddlr" in kinds
        least = _TARGETED_DLR if kinds & _AIMS else _DLR if ranks else 2
        if classes < least:
            problems.append(f"{attack.key} needs {least}")
    if not problems:
        return passed("few-classes", classes=float(classes))
    reason = (
        f"the network has {classes} classes, but the loss of {' and '.join(problems)}, so that "
        "attack is not what its name says; use pgd, cw, apgd-ce or square"
    )
    return failed("few-classes", reason, classes=float(classes))


def attack_mode(attacks: Iterable[Attack]) -> Check:
    """Whether attacks saw batch statistics while the network is judged with running ones."""
    made = list(attacks)
    if not made:
        return not_run("attack-mode", "nothing was attacked")
    odd = [attack.key for attack in made if getattr(attack, "bn_mode", "eval") != "eval"]
    if not odd:
        return passed("attack-mode")
    reason = (
        f"{', '.join(odd)} attacked the network with the batch's statistics (bn_mode: train), but "
        "it answers with its running ones: such an attack is weaker than one on the network as it "
        "is used"
    )
    return failed("attack-mode", reason)
