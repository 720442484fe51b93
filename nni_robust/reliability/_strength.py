"""Checks of attacks that are too weak to say anything: too short for the ball, or beaten by others.

Both blame an attack, not the network. The margins are wide, and a difference has to be more than
chance (McNemar's exact test on the pictures that only one of two attacks breaks), so that attacks
of different strength may run side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from nni_robust.attacks import Attack
from nni_robust.attacks.gradient import PGD
from nni_robust.reliability._attacks import is_black_box
from nni_robust.reliability._checks import Check, failed, not_run, passed
from nni_robust.reliability._results import Outcome, is_compared, is_continued

__all__ = ["reaches_eps", "weak_attack"]

#: From so many steps on an attack claims to be thorough.
_MANY = 10
#: Shares of all pictures by which it may break less than one step, and than the best attack.
_THAN_ONE_STEP, _THAN_BEST = 0.03, 0.15
#: Chance of a difference like that between two attacks that are equally strong.
_CHANCE = 0.01


def reaches_eps(attacks: Sequence[Attack]) -> Check:
    """Whether steps whose size the user chose can get to the rim of the ball."""
    known = [(one, *_chosen(one)) for one in attacks if one.threat.eps > 0]
    moves = [(one, steps, size) for one, steps, size in known if steps and size]
    if not moves:
        return not_run("reaches-eps", "no attack ran with steps of a size that was asked for")
    longer = [one for one, *_ in moves]
    short = [
        (one, steps, size)
        for one, steps, size in moves
        if steps * size < one.threat.eps * (1 - 1e-6)
        and not any(_goes_on(one, other) for other in longer)
    ]
    share = min(steps * size / one.threat.eps for one, steps, size in moves)
    if not short:
        return passed("reaches-eps", share=share)
    one, steps, size = min(short, key=lambda move: move[1] * move[2] / move[0].threat.eps)
    reason = (
        f"{steps} steps of {size:.4g} come to {steps * size:.4g}, so {one.key} cannot get to the "
        f"rim of its ball ({one.threat.eps:.4g}) from a clean picture: give it more or longer steps"
    )
    return failed("reaches-eps", reason, share=share)


def _chosen(attack: Attack) -> tuple[int | None, float | None]:
    """Steps and their size, where that was asked for."""
    if isinstance(attack, PGD):
        chosen = attack.settings.step_size is not None
        return attack.settings.steps, attack.step_size if chosen else None
    size = getattr(attack, "step_size", None) if getattr(attack, "own_step", False) else None
    return getattr(attack, "steps", None), size


def _goes_on(short: Attack, long: Attack) -> bool:
    return isinstance(short, PGD) and isinstance(long, PGD) and is_continued(short, long)


def weak_attack(outcomes: Sequence[Outcome]) -> Check:
    """An attack of many steps that breaks clearly less than one step, or than the best."""
    white = [o for o in outcomes if o.attack.threat.eps > 0 and _sees_gradients(o.attack)]
    many = [o for o in white if _steps(o.attack) >= _MANY]
    compared, worst, says = False, 0.0, ""
    for weak in many:
        others = [o for o in white if o is not weak and o.attack.threat == weak.attack.threat]
        for other in others:
            one_step = _steps(other.attack) == 1
            if is_compared(other.attack, weak.attack) and one_step:
                continue  # rises-with-steps, whose threshold is lower
            compared = True
            n, surplus = len(weak.correct), weak.right - other.right
            margin = _THAN_ONE_STEP if one_step else _THAN_BEST
            if surplus / n > max(margin, worst) and _by_chance(other, weak) < _CHANCE:
                worst = surplus / n
                says = (
                    f"{weak.attack.key} leaves {weak.accuracy:.2%}, but {other.attack.key}"
                    f"{', a single step,' if one_step else ''} {other.accuracy:.2%}: the figure of "
                    f"{weak.attack.key} says little about the network"
                )
    if not compared:
        why = "no attack of many steps ran beside another (rises-with-steps has PGD beside FGSM)"
        return not_run("weak-attack", why)
    if not says:
        return passed("weak-attack")
    return failed("weak-attack", says, gap=worst)


def _by_chance(strong: Outcome, weak: Outcome) -> float:
    """McNemar's exact test, one-sided: how likely so many more breaks are if both are equal."""
    only_strong = int((weak.correct & ~strong.correct).sum())
    n = only_strong + int((strong.correct & ~weak.correct).sum())
    k = torch.arange(only_strong, n + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float((ways - n * math.log(2)).exp().sum())


def _sees_gradients(attack: Attack) -> bool:
    cls: Any = getattr(attack, "_class", None)
    return not is_black_box(attack) and getattr(cls, "__name__", "") != "VANILA"


def _steps(attack: Attack) -> int:
    """Gradient steps; an attack that does not say is taken for one of many."""
    settings = getattr(attack, "settings", None)
    steps = getattr(settings, "steps", None) or getattr(attack, "steps", None)
    if steps is not None:
        return int(steps)
    cls: Any = getattr(attack, "_class", None)
    single = cls is not None and cls.__name__ in ("FGSM", "FFGSM")
    return 1 if single else _MANY
