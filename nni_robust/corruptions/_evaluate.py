"""Accuracy on corrupted pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_robust._pictures import Batch, Progress, batches, is_correct
from nni_robust._resuming import EvaluationFolder
from nni_robust.attacks import undisturbed
from nni_robust.attacks._progress import ProgressFolder
from nni_robust.corruptions._corrupt import SEVERITIES, corrupt, names_of, scale_of
from nni_robust.corruptions._parameters import STANDARD, Scale
from nni_robust.errors import UserError
from nni_robust.reliability import AnswersMonitor, Reliability, need_reliability

__all__ = ["CorruptionResult", "evaluate_corruptions"]

_PART = "corruptions"
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
    folder: str | Path | None = None,
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
    folder
        Where to keep, batch by batch, which corrupted pictures the network gets right, as in
        :func:`nni_robust.evaluate`: the same call goes on after a kill and repeats at most one
        batch of one corruption. More corruptions, severities and pictures may be asked for later.

    Raises
    ------
    UserError
        On unusable data, an unknown corruption or severity; a folder as in
        :func:`nni_robust.evaluate`.
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
    with ExitStack() as stack:
        kept = None
        if folder is not None:
            parts = {_PART: f"scale {scale}"}
            kept = stack.enter_context(EvaluationFolder(folder, model, parts, seed)).part(_PART)
        stack.enter_context(undisturbed(model))
        for batch in batches(model, data, batch_size, device, limit):
            used = scale_of(batch.x.shape, scale)
            clean += int(is_correct(model, batch.x, batch.y, batch.largest_label).sum())
            n += len(batch.y)
            monitor.clean(batch.x, batch.y)
            batch.report(progress, "clean")
            shown = _Shown(model, batch, used, seed, kept)
            for name in names:
                for level, count in shown.counts(name, levels).items():
                    right[name][level] += count
                batch.report(progress, name)
        reliability = monitor.finish()
    accuracy = {
        name: {level: count / n for level, count in found.items()} for name, found in right.items()
    }
    seconds = time.perf_counter() - started
    return CorruptionResult(clean / n, accuracy, n, used, seed, seconds, reliability)


class _Shown:
    """One batch and what the network says of it under corruptions."""

    def __init__(
        self, model: nn.Module, batch: Batch, scale: Scale, seed: int, kept: ProgressFolder | None
    ) -> None:
        self.model, self.batch, self.scale, self.seed = model, batch, scale, seed
        self.rows = torch.arange(len(batch.y), device=batch.y.device)
        self.index = self.rows + batch.first
        self.known = None
        if kept is not None:  # no pictures are kept, so none have to be given back
            self.known = kept.batch(batch.x[:, :0], batch.x, batch.y, self.index)

    def correct(self, name: str, level: int, rows: Tensor) -> Tensor:
        """(len(rows),), bool: which rows are right under a corruption."""
        x, y, index = self.batch.x[rows], self.batch.y[rows], self.index[rows]
        shown = corrupt(x, name, level, seed=self.seed, index=index, scale=self.scale)
        return is_correct(self.model, shown, y, self.batch.largest_label)

    def counts(self, name: str, levels: tuple[int, ...]) -> dict[int, int]:
        """How many are right at each severity; what was not known is written in one step."""
        right, new = dict.fromkeys(levels, 0), []
        for level in levels:
            rows = self.rows
            if self.known is not None:
                before = self.known.known(_number(name, level), rows)
                right[level] += int((before.tried & ~before.broken).sum())
                rows = rows[~before.tried]
            if len(rows):
                correct = self.correct(name, level, rows)
                right[level] += int(correct.sum())
                new.append((torch.full_like(rows, _number(name, level)), rows, ~correct))
        if self.known is not None and new:
            numbers, rows, wrong = (torch.cat(parts) for parts in zip(*new, strict=True))
            self.known.add(numbers, rows, None, wrong)
        return right


def _number(name: str, level: int) -> int:
    """A corruption and severity as a number, the same in every version."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") * 10 + level


def _levels(severities: Iterable[int]) -> tuple[int, ...]:
    if isinstance(severities, (str, int)) or not isinstance(severities, Iterable):
        raise UserError(f"severities: {severities!r} is not allowed; a list such as [1, 3, 5] is")
    levels = tuple(sorted(set(severities)))
    if not levels or any(isinstance(v, bool) or v not in SEVERITIES for v in levels):
        raise UserError(f"severities: {list(levels)!r} is not allowed; of 1 to 5 at least one is")
    return levels
