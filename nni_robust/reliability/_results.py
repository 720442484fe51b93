"""Checks of figures against each other: what a sound evaluation cannot show."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nni_robust.attacks import Attack
from nni_robust.attacks.gradient import PGD
from nni_robust.reliability._attacks import is_black_box
from nni_robust.reliability._checks import Check, failed, not_run, passed

__all__ = [
    "BLACK_BOX",
    "LARGE_EPS",
    "MORE",
    "Outcome",
    "compare",
    "is_compared",
    "is_continued",
    "large_eps_check",
]

#: Share by which a black-box attack may be better, AutoAttack's; here one picture may be, too.
BLACK_BOX = 0.002
#: Share by which accuracy may rise with eps or steps, or fall with twice the steps; or one picture.
MORE = 0.005
#: L∞ radius at which every picture can become uniform grey, and the share that may be left there.
LARGE_EPS, ABOUT_ZERO = 0.5, 0.01


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one attack left over.

    Parameters
    ----------
    attack
        The attack.
    correct
        (N,), bool, on the CPU: pictures still right.
    alone
        Of several attacks in a row: pictures that only those without gradients broke, where both
        kinds ran.
    """

    attack: Attack
    correct: Tensor
    alone: int | None = None

    @property
    def right(self) -> int:
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        return self.right / len(self.correct)


def compare(outcomes: Sequence[Outcome]) -> list[Check]:
    """Every check that needs the figures only."""
    return [
        _rises("rises-with-eps", _eps_pairs(outcomes), "a larger eps"),
        _rises("rises-with-steps", _step_pairs(outcomes), "more steps"),
        _black_box(outcomes),
        _large_eps(outcomes),
    ]


def _exceeds(more: Outcome, less: Outcome) -> bool:
    """Whether the attack that should be stronger leaves clearly more pictures."""
    surplus = more.right - less.right
    return surplus > 1 and surplus / len(more.correct) > MORE


def _rises(name: str, pairs: list[tuple[Outcome, Outcome]], what: str) -> Check:
    if not pairs:
        return not_run(name, f"no attack ran twice, once with {what}")
    rise = max(strong.accuracy - weak.accuracy for weak, strong in pairs)
    bad = [(weak, strong) for weak, strong in pairs if _exceeds(strong, weak)]
    if not bad:
        return passed(name, rise=rise)
    weak, strong = max(bad, key=lambda pair: pair[1].accuracy - pair[0].accuracy)
    reason = (
        f"accuracy is {strong.accuracy:.2%} under {strong.attack.key}, but {weak.accuracy:.2%} "
        f"under the weaker {weak.attack.key}: the attack loses its way, as where gradients mislead"
    )
    return failed(name, reason, rise=rise)


def _eps_pairs(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Two strengths of one attack, the weaker first."""

    def same(a: Attack, b: Attack) -> bool:
        return (type(a), a.label, a.threat.norm) == (type(b), b.label, b.threat.norm)

    return [
        (weak, strong)
        for weak, strong in itertools.permutations(outcomes, 2)
        if same(weak.attack, strong.attack) and weak.attack.threat.eps < strong.attack.threat.eps
    ]


def _step_pairs(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """One gradient attack with fewer and with more steps; one step and many."""
    ours = [o for o in outcomes if isinstance(o.attack, PGD) and o.attack.threat.eps > 0]
    return [
        (weak, strong)
        for weak, strong in itertools.permutations(ours, 2)
        if weak.attack.threat == strong.attack.threat and _is_longer(strong.attack, weak.attack)
    ]


def is_compared(weak: Attack, strong: Attack) -> bool:
    """Whether ``rises-with-steps`` looks at these two."""
    ours = isinstance(weak, PGD) and isinstance(strong, PGD)
    return ours and weak.threat == strong.threat and _is_longer(strong, weak)


def is_continued(weak: PGD, strong: PGD) -> bool:
    """Whether one attack is the other with more steps."""
    long, short = strong.settings, weak.settings
    return (
        type(strong) is type(weak)
        and strong.threat == weak.threat
        and long.steps > short.steps
        and dataclasses.replace(long, steps=1) == dataclasses.replace(short, steps=1)
    )


def _is_longer(strong: Any, weak: Any) -> bool:
    long, short = strong.settings, weak.settings
    if long.steps <= short.steps:
        return False
    if is_continued(weak, strong):
        return True
    # Against one step: many that can cross the whole ball, so that their start does not matter.
    crosses = long.steps >= 10 and long.steps * strong.step_size >= 2 * strong.threat.eps
    return bool(short.steps == 1 and crosses and long.loss == short.loss)


def _black_box(outcomes: Sequence[Outcome]) -> Check:
    """A black-box attack that beats every white-box attack in the same ball."""
    gaps: list[tuple[float, str]] = []
    for outcome in outcomes:
        if outcome.alone is not None:
            says = f"the part of {outcome.attack.key} that sees no gradients broke them by itself"
            gaps.append((outcome.alone / len(outcome.correct), says))
    for black in (o for o in outcomes if is_black_box(o.attack)):
        white = [
            o
            for o in outcomes
            if not is_black_box(o.attack) and o.attack.threat == black.attack.threat
        ]
        if white:
            best = min(white, key=lambda o: o.accuracy)
            says = (
                f"{black.attack.key}, which sees no gradients, leaves {black.accuracy:.2%}, and "
                f"{best.attack.key}, the best that does, {best.accuracy:.2%}"
            )
            gaps.append((best.accuracy - black.accuracy, says))
    if not gaps:
        return not_run("black-box-wins", "no attack without gradients ran beside one with")
    gap, says = max(gaps)
    if gap <= BLACK_BOX or round(gap * len(outcomes[0].correct)) <= 1:
        return passed("black-box-wins", gap=gap)
    reason = f"gradients mislead: without them {100 * gap:.1f} points more break ({says})"
    return failed("black-box-wins", reason, gap=gap)


def _large_eps(outcomes: Sequence[Outcome]) -> Check:
    """From an attack that ran at such a radius anyway."""
    large = [
        o
        for o in outcomes
        if o.attack.threat.norm == "linf"
        and o.attack.threat.eps >= LARGE_EPS
        and isinstance(o.attack, PGD)
        and o.attack.settings.steps >= 10
    ]
    if not large:
        return not_run("large-eps", "it takes a thorough evaluation")
    best = min(large, key=lambda o: o.accuracy)
    return large_eps_check(best.right, len(best.correct), best.attack.key)


def large_eps_check(right: int, n: int, key: str) -> Check:
    """Whether `right` of `n` pictures are about none."""
    if right <= 1 or right / n <= ABOUT_ZERO:
        return passed("large-eps", accuracy=right / n, pictures=float(n))
    reason = (
        f"accuracy is still {right / n:.2%} under {key}, where any picture can become grey: the "
        "attack does not work on this network"
    )
    return failed("large-eps", reason, accuracy=right / n, pictures=float(n))
