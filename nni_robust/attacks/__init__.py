"""Adversarial attacks: our own engine, AutoAttack included, and every attack of torchattacks.

``attack("pgd", eps=8 / 255, steps=20)(model, x, y)`` gives attacked pictures under one contract,
that of :class:`Attack`. A package adds attacks through entry points in the group
``nni_robust.attacks``: a function of a :class:`~nni_robust.threat.ThreatModel` and settings that
returns an :class:`Attack`.
"""

from __future__ import annotations

# These register their attacks.
from nni_robust.attacks import apgd as apgd
from nni_robust.attacks import autoattack as autoattack
from nni_robust.attacks import deepfool as deepfool
from nni_robust.attacks import fab as fab
from nni_robust.attacks import gradient as gradient
from nni_robust.attacks import square as square
from nni_robust.attacks import torchattacks as torchattacks
from nni_robust.attacks._base import Attack, NonFiniteOutput, Precision, Victim
from nni_robust.attacks._frozen import undisturbed
from nni_robust.attacks._norms import Ball
from nni_robust.attacks._spec import (
    AttackSpec,
    attack,
    attack_from_spec,
    list_attacks,
    scoring_attacks,
)

__all__ = [
    "Attack",
    "AttackSpec",
    "Ball",
    "NonFiniteOutput",
    "Precision",
    "Victim",
    "attack",
    "attack_from_spec",
    "list_attacks",
    "scoring_attacks",
    "undisturbed",
]
