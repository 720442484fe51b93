"""From what a user writes to an attack: names, short forms such as ``pgd20``, YAML mappings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from nni_robust import registry
from nni_robust.attacks._base import Attack
from nni_robust.config import parse
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["CLEAN", "AttackSpec", "attack", "attack_from_spec", "list_attacks", "scoring_attacks"]

#: In place of an attack: none, only clean accuracy counts.
CLEAN = "clean"

#: What stands for an attack in a configuration.
AttackSpec: TypeAlias = str | Mapping[str, Any] | Attack


def list_attacks() -> list[str]:
    """Every name that :func:`attack` knows: ours and those of installed packages."""
    return registry.attacks.names()


def attack(
    name: str,
    *,
    eps: float | str = 8 / 255,
    norm: Literal["linf", "l2"] = "linf",
    **settings: Any,
) -> Attack:
    """Make an attack.

    Parameters
    ----------
    name
        One of :func:`list_attacks`; a number at the end of the name is the number of steps
        (``"pgd20"``, ``"pgd-20"``); ``"torchattacks:CW"`` is a class of torchattacks.
    eps
        Radius of the ball in pixel units on [0, 1]; may be written ``"8/255"``.
    norm
        ``"linf"`` or ``"l2"``.
    **settings
        Settings of that attack, such as `steps`, `step_size`, `random_start`, `restarts`; `label`
        names it in results.

    Returns
    -------
    Attack
        ``attack(...)(model, x, y)`` are the attacked pictures.

    Raises
    ------
    UserError
        On an unknown name, an unknown setting, or a value out of range.

    Examples
    --------
    >>> attack("pgd", eps=8 / 255, step_size=2 / 255, steps=20, restarts=5)
    PGD(pgd20x5@8/255)
    """
    return attack_from_spec({"name": name, **settings}, _threat(norm, eps))


def attack_from_spec(spec: AttackSpec, threat: ThreatModel) -> Attack:
    """Make an attack from a configuration.

    Parameters
    ----------
    spec
        A name (``"fgsm"``, ``"pgd20"``, ``"torchattacks:CW"``); a mapping with `name` and settings
        (``{"name": "pgd", "steps": 20, "step_size": "2/255"}``); or an attack, which passes.
        A mapping may also have `eps` and `norm`, which replace those of `threat`.
    threat
        What the attack may do.

    Raises
    ------
    UserError
        On an unknown name, an unknown setting, or a value out of range.
    """
    if isinstance(spec, Attack):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise UserError(f"an attack is a name or a mapping of settings, not {spec!r}")
    settings = dict(spec)
    if not isinstance(name := settings.pop("name", None), str):
        raise UserError(
            f"an attack needs a name, got {name!r} (known: {', '.join(list_attacks())})"
        )
    norm, eps = settings.pop("norm", threat.norm), settings.pop("eps", threat.eps)
    name, extra = _split(name)
    for key in extra.keys() & settings.keys():
        raise UserError(f"attack '{spec['name']}' sets {key} both in its name and as a setting")
    made = registry.attacks.get(name)(_threat(norm, eps), **extra, **settings)
    if not isinstance(made, Attack):
        raise UserError(
            f"attack '{name}' gives a {type(made).__name__}, not a nni_robust.attacks.Attack"
        )
    return made


def scoring_attacks(
    given: Sequence[Any] | None, attack: AttackSpec | None, threat: ThreatModel
) -> list[Any]:
    """What a network is scored under.

    Parameters
    ----------
    given
        Attacks that were asked for; ``["clean"]`` is none. None leaves it to the task.
    attack
        The task's attack; ``"clean"`` is none. None is ``"pgd20"``.
    threat
        The task's threat, to check them.

    Returns
    -------
    list
        Specifications of attacks; empty where only clean accuracy counts.

    Raises
    ------
    UserError
        If nothing was asked for, or an attack does not exist.
    """
    specs = [attack or "pgd20"] if given is None else list(given)
    if not specs:
        raise UserError(
            "evaluator.attacks: at least one attack is needed, such as pgd20 (or clean for none)"
        )
    if specs == [CLEAN]:
        return []
    if CLEAN in specs:
        raise UserError("evaluator.attacks: 'clean' is not allowed beside attacks")
    for spec in specs:
        attack_from_spec(spec, threat)
    return specs


def _split(name: str) -> tuple[str, dict[str, Any]]:
    """The registered name inside a short form, and the settings that the rest stands for."""
    if name in registry.attacks:
        return name, {}
    head, colon, member = name.partition(":")
    if colon and head in registry.attacks:
        return head, {"attack": member}
    if (match := re.fullmatch(r"(.+?)-?(\d+)", name)) and match[1] in registry.attacks:
        return match[1], {"steps": int(match[2])}
    return name, {}


def _threat(norm: Any, eps: Any) -> ThreatModel:
    return parse(ThreatModel, {"norm": norm, "eps": eps}, "threat")
