"""Whether a robustness figure can be believed: the flags that every result carries.

The flags are AutoAttack's with its thresholds (Croce and Hein, 2003.01690, and the notes of its
code) and some of the advice of Carlini et al., "On evaluating adversarial robustness" (1902.06705).
A flag does not change a figure; it says why the figure may be too high, or mean something else.
What each means and what to do about it: ``docs/threat-model.md``.
"""

from __future__ import annotations

from nni_robust.reliability._answers import AnswersMonitor
from nni_robust.reliability._checks import (
    CANNOT_FAIL,
    CHECKS,
    Check,
    Reliability,
    Status,
    need_reliability,
)
from nni_robust.reliability._examples import outside_ball
from nni_robust.reliability._monitor import Monitor
from nni_robust.reliability._network import HALVES
from nni_robust.reliability._results import BLACK_BOX, Outcome
from nni_robust.reliability._training import check_training

__all__ = [
    "BLACK_BOX",
    "CANNOT_FAIL",
    "CHECKS",
    "HALVES",
    "AnswersMonitor",
    "Check",
    "Monitor",
    "Outcome",
    "Reliability",
    "Status",
    "check_training",
    "need_reliability",
    "outside_ball",
]
