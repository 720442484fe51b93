"""Accuracy on corrupted pictures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from nni_robust._pictures import Batch, Progress, batches, is_correct
from nni_robust.attacks import undisturbed
from nni_robust.corruptions._corrupt import SEVERITIES, corrupt, names_of, scale_of
from nni_robust.corruptions._parameters import STANDARD, Scale
from nni_robust.errors import UserError
from nni_robust.reliability import AnswersMonitor, Reliability, need_reliability

__all__ = ["CorruptionResult", "evaluate_corruptions"]

_FROST = "frost is drawn here, not photographed: do not compare it with published figures"


@dataclasses.dataclass(frozen=True)
class CorruptionResult:
    """Accuracy of one network under corruptions.

    Parameters
    ----------
    clean
        Accuracy without corruption, in [0, 1].
    accuracy
        ``accuracy[corruption][severity]``, in [0, 1], of all pictures.
    n
        Number of pictures.
    scale
        Whose strengths: ``"cifar"`` or ``"imagenet"``.
    seed
        Of everything random.
    seconds
        Wall time of all.
    reliability
        Which checks of these figures ran, and which failed.
    """

    clean: float
    accuracy: Mapping[str, Mapping[int, float]]
    n: int
    scale: Scale
    seed: int
    seconds: float
    reliability: Reliability

    def __post_init__(self) -> None:
        need_reliability(self)

    def mean_of(self, corruption: str) -> float:
        """Mean over the severities of one corruption, in [0, 1]."""
        found = self.accuracy[corruption]
        return sum(found.values()) / len(found)

    @property
    def mean(self) -> float:
        """Mean of the corruptions' means, in [0, 1]."""
        return sum(map(self.mean_of, self.accuracy)) / len(self.accuracy)

    @property
    def mean_error(self) -> float:
        """1 − :attr:`mean`: the mean corruption error, not divided by that of another network."""
        return 1 - self.mean

    @property
    def is_standard(self) -> bool:
        """Whether the mean is over all fifteen corruptions and five severities."""
        severities = {tuple(found) for found in self.accuracy.values()}
        return tuple(self.accuracy) == STANDARD and severities == {SEVERITIES}

    @property
    def note(self) -> str | None:
        """What readers must know before they compare the figures, or None."""
        return _FROST if "frost" in self.accuracy else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "pictures": self.n,
            "scale": self.scale,
            "seed": self.seed,
            "clean": self.clean,
            "mean_accuracy": self.mean,
            "mean_error": self.mean_error,
            "standard": self.is_standard,
            "note": self.note,
            "accuracy": {
                name: {str(severity): value for severity, value in found.items()}
                for name, found in self.accuracy.items()
            },
            "reliability": self.reliability.as_dict(),
            "seconds": self.seconds,
        }


def evaluate_corruptions(
    model: nn.Module,
    data: Any,
    corruptions: str | Iterable[str] = "standard",
    severities: Iterable[int] = SEVERITIES,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    scale: Scale | Literal["auto"] = "auto",
    progress: Progress | None = None,
) -> CorruptionResult:
    """Measure accuracy on corrupted pictures; the network is left exactly as it was.

    Every picture counts, also one that is wrong without corruption, as is the custom of these
    benchmarks. Results do not depend on the batch size, up to the network's rounding.

    Parameters
    ----------
    model, data, batch_size, device, limit
        As in :func:`nni_robust.evaluate`.
    corruptions
        ``"standard"`` (the fifteen of the benchmark's mean), ``"all"``, or names.
    severities
        Of 1 to 5.
    seed
        Of everything random.
    scale
        Whose strengths, see :func:`~nni_robust.corruptions.corrupt`.
    progress
        Called after each batch of each stage (``"clean"`` and the corruptions' names).

    Raises
    ------
    UserError
        On unusable data, an unknown corruption or severity.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    started = time.perf_counter()
    names, levels = names_of(corruptions), _levels(severities)
    scale_of((1, 1), scale)
    monitor = AnswersMonitor(model, "nothing was attacked")
    right = {name: dict.fromkeys(levels, 0) for name in names}
    clean = n = 0
    used: Scale = "cifar"
    with undisturbed(model):
        for batch in batches(model, data, batch_size, device, limit):
            used = scale_of(batch.x.shape, scale)
            clean += _count(model, batch, batch.x)
            n += len(batch.y)
            monitor.clean(batch.x, batch.y)
            batch.report(progress, "clean")
            index = torch.arange(batch.first, n, device=batch.x.device)
            for name in names:
                for level in levels:
                    shown = corrupt(batch.x, name, level, seed=seed, index=index, scale=used)
                    right[name][level] += _count(model, batch, shown)
                batch.report(progress, name)
        reliability = monitor.finish()
    accuracy = {
        name: {level: count / n for level, count in found.items()} for name, found in right.items()
    }
    seconds = time.perf_counter() - started
    return CorruptionResult(clean / n, accuracy, n, used, seed, seconds, reliability)


def _count(model: nn.Module, batch: Batch, shown: torch.Tensor) -> int:
    return int(is_correct(model, shown, batch.y, batch.largest_label).sum())


def _levels(severities: Iterable[int]) -> tuple[int, ...]:
    if isinstance(severities, (str, int)) or not isinstance(severities, Iterable):
        raise UserError(f"severities: {severities!r} is not allowed; a list such as [1, 3, 5] is")
    levels = tuple(sorted(set(severities)))
    if not levels or any(isinstance(v, bool) or v not in SEVERITIES for v in levels):
        raise UserError(f"severities: {list(levels)!r} is not allowed; of 1 to 5 at least one is")
    return levels
