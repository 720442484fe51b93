"""Checks that cost more attacks: where everything is allowed, and with twice the steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nni_robust.attacks import Attack, Victim
from nni_robust.attacks.gradient import PGD
from nni_robust.reliability._checks import Check, failed, not_run, passed
from nni_robust.reliability._results import (
    LARGE_EPS,
    MORE,
    Outcome,
    is_continued,
    large_eps_check,
)
from nni_robust.threat import ThreatModel

__all__ = ["THOROUGH_PICTURES", "Sample", "thorough_checks"]

#: Pictures that thorough checks look at, the first of the data.
THOROUGH_PICTURES = 256
_STEPS = 20


@dataclasses.dataclass
class Sample:
    """Pictures (M, C, H, W), labels and places in the data (M,), and which are right (M,)."""

    x: Tensor
    y: Tensor
    index: Tensor
    right: Tensor


def thorough_checks(
    model: nn.Module,
    sample: Sample,
    attacks: Sequence[Attack],
    outcomes: Sequence[Outcome],
    *,
    seed: int,
    batch_size: int,
) -> list[Check]:
    """Attack a sample further.

    Parameters
    ----------
    model
        The network, frozen in evaluation mode.
    sample
        The first pictures of the data.
    attacks
        What was run.
    outcomes
        What it left over, for each attack with figures of its own.
    seed
        Of random starts; that of the evaluation, so that longer attacks pass through shorter ones.
    batch_size
        Pictures in memory at a time.
    """
    norm = attacks[0].threat.norm
    eps = LARGE_EPS if norm == "linf" else LARGE_EPS * math.sqrt(sample.x[0].numel())
    large = PGD(ThreatModel(norm, eps), steps=_STEPS, early_stop=True)
    left = _left(model, large, sample, sample.right, seed, batch_size)
    return [
        large_eps_check(int(left.sum()), len(sample.y), large.key),
        _more_steps(model, sample, outcomes, seed, batch_size),
    ]


def _more_steps(
    model: nn.Module, sample: Sample, outcomes: Sequence[Outcome], seed: int, batch_size: int
) -> Check:
    """What gradient attacks still break with twice the steps, of what withstood them."""
    m, worst = len(sample.y), (0, "", "")
    ran = False
    ours = [o.attack for o in outcomes if isinstance(o.attack, PGD)]
    for outcome in outcomes:
        attack = outcome.attack
        if not isinstance(attack, PGD) or attack.settings.steps == 1 or attack.threat.eps == 0:
            continue
        if any(is_continued(attack, other) for other in ours):
            continue  # only the longest of several counts
        ran = True
        doubled = _doubled(attack)
        withstood = outcome.correct[:m].to(sample.y.device)
        still = _left(model, doubled, sample, withstood, seed, batch_size)
        broken = int(withstood.sum()) - int(still.sum())
        worst = max(worst, (broken, attack.key, doubled.key))
    if not ran:
        return not_run("more-steps", "no gradient attack of several steps has figures of its own")
    broken, key, longer = worst
    if broken <= 1 or broken / m < MORE:
        return passed("more-steps", change=broken / m, pictures=float(m))
    reason = (
        f"twice the steps lower accuracy by {100 * broken / m:.1f} points on {m} pictures "
        f"({longer} after {key}): the attack is too short"
    )
    return failed("more-steps", reason, change=broken / m, pictures=float(m))


def _doubled(attack: PGD) -> PGD:
    settings = {
        f.name: getattr(attack.settings, f.name) for f in dataclasses.fields(attack.settings)
    }
    settings["steps"] *= 2
    return type(attack)(attack.threat, **settings)


def _left(
    model: nn.Module, attack: Attack, sample: Sample, rows: Tensor, seed: int, batch_size: int
) -> Tensor:
    """(M,), bool: which of some pictures an attack leaves right."""
    left = rows.clone()
    victim = Victim(model, sample.x.dtype)
    for part in torch.split(rows.nonzero().flatten(), batch_size):
        y = sample.y[part]
        adv = attack(model, sample.x[part], y, seed=seed, index=sample.index[part])
        with torch.no_grad():
            left[part] = victim(adv).argmax(1) == y
    return left
