"""Learning-rate schedules: pure functions of how far the training is.

Shapes map the share t of the way, in [0, 1], to a factor; the rate is min_lr + (lr - min_lr) *
factor. A linear warm-up may come first; then t counts from its end, except for the milestones of
``step``, which are epochs from the start.

* ``cosine``: (1 + cos(pi t)) / 2 (Loshchilov and Hutter, "SGDR", 1608.03983, one period).
* ``linear``: 1 - t.
* ``cyclic``: up to 1 at t = 0.4, then down to 0 (Wong et al., "Fast is better than free",
2001.03994). * ``step``: gamma to the power of the milestones passed. * ``constant``: 1.

The RobNet repository's rule is ``cosine`` with warmup_lr 0.02, 20 warm-up epochs of 170, min_lr
0.001 and a rate that changes once per epoch.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable

__all__ = ["SCHEDULES", "Schedule"]

_PEAK = 0.4  # of the cyclic schedule

#: Name to factor of t; ``step`` is no function of t alone.
SCHEDULES: dict[str, Callable[[float], float] | None] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda t: 1 - t,
    "cyclic": lambda t: t / _PEAK if t < _PEAK else (1 - t) / (1 - _PEAK),
    "step": None,
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate for every moment of a training.

    Parameters
    ----------
    name
        One of :data:`SCHEDULES`.
    lr
        Highest rate.
    epochs
        Length of the training.
    warmup_epochs, warmup_lr
        Length of the linear warm-up and the rate it starts from.
    min_lr
        Rate at factor 0.
    milestones, gamma
        Of ``step``: epochs (from the start) at which the factor is multiplied with `gamma`.
    """

    name: str
    lr: float
    epochs: float
    warmup_epochs: float = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __call__(self, epoch: float) -> float:
        """The rate after `epoch` epochs (a fraction in the middle of one), in [0, `epochs`]."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup_epochs
        shape = SCHEDULES[self.name]
        if shape is None:
            factor = self.gamma ** bisect_right(self.milestones, epoch)
        else:
            factor = shape((epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs))
        return self.min_lr + (self.lr - self.min_lr) * factor
