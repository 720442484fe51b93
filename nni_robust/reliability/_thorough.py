"""Checks that cost more attacks: where everything is allowed, and with twice the steps."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nni_robust._resuming import EvaluationFolder, SuiteProgress, attack_text
from nni_robust.attacks import Attack, Victim
from nni_robust.attacks.gradient import PGD
from nni_robust.reliability._checks import Check, failed, not_run, passed
from nni_robust.reliability._examples import outside_ball
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
    home: EvaluationFolder | None = None,
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
    home
        Where to keep what was found; None keeps nothing.
    """
    run = _Run(model, sample, seed, batch_size, home)
    norm = attacks[0].threat.norm
    eps = LARGE_EPS if norm == "linf" else LARGE_EPS * math.sqrt(sample.x[0].numel())
    large = PGD(ThreatModel(norm, eps), steps=_STEPS, early_stop=True)
    left = run.left("a very large eps", large, sample.right)
    return [
        large_eps_check(int(left.sum()), len(sample.y), large.key),
        _more_steps(run, outcomes),
    ]


def _more_steps(run: _Run, outcomes: Sequence[Outcome]) -> Check:
    """What gradient attacks still break with twice the steps, of what withstood them."""
    m, worst = len(run.sample.y), (0, "", "")
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
        withstood = outcome.correct[:m].to(run.sample.y.device)
        still = run.left(f"twice the steps of {attack.key}", doubled, withstood)
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


@dataclasses.dataclass(frozen=True)
class _Run:
    """Runs attacks on a sample; see :func:`thorough_checks`."""

    model: nn.Module
    sample: Sample
    seed: int
    batch_size: int
    home: EvaluationFolder | None

    def left(self, name: str, attack: Attack, rows: Tensor) -> Tensor:
        """(M,), bool: which of some pictures an attack, called `name`, leaves right."""
        suite = None
        if self.home is not None:
            self.home.add({name: attack_text(attack)})
            suite = SuiteProgress(self.home, [name], [attack])
        left = rows.clone()
        for part in torch.split(rows.nonzero().flatten(), self.batch_size):
            x, y, index = self.sample.x[part], self.sample.y[part], self.sample.index[part]
            found = functools.partial(self._attacked, attack, x, y, index)
            progress = None if suite is None else suite.batch(attack, x, y, index)
            if progress is None:
                broken = found(torch.arange(len(y), device=y.device))[1]
            else:
                broken = progress.completed(found, pictures=False).broken
            left[part] = broken.logical_not()
        return left

    def _attacked(
        self, attack: Attack, x: Tensor, y: Tensor, index: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Some rows after an attack, which are broken, and which outside of ball or box."""
        clean, labels = x[rows], y[rows]
        adv = attack(self.model, clean, labels, seed=self.seed, index=index[rows])
        with torch.no_grad():
            broken = Victim(self.model, self.sample.x.dtype)(adv).argmax(1) != labels
        return adv, broken, outside_ball(attack, clean, adv)
