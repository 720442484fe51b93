"""Accuracy under one attack over its strength, or over its number of steps, with its flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from nni_robust._pictures import (
    Progress,
    as_threat,
    batches,
    is_correct,
    make_attacks,
    survives,
)
from nni_robust._resuming import EvaluationFolder, SuiteProgress, attack_text
from nni_robust.attacks import undisturbed
from nni_robust.errors import UserError
from nni_robust.reliability import (
    CANNOT_FAIL,
    Check,
    Monitor,
    Outcome,
    Reliability,
    need_reliability,
)
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.threat import ThreatModel

__all__ = ["Curve", "eps_curve", "steps_curve"]

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Curve(Sequence[Point]):
    """Accuracies over a rising setting of an attack; as a sequence, its points.

    Parameters
    ----------
    points
        Pairs (setting, accuracy in [0, 1]).
    reliability
        Which checks of these figures ran, and which failed.
    """

    points: tuple[Point, ...]
    reliability: Reliability

    def __post_init__(self) -> None:
        need_reliability(self)

    @property
    def accuracy(self) -> dict[float, float]:
        """Accuracies by the setting."""
        return dict(self.points)

    def __len__(self) -> int:
        return len(self.points)

    @overload
    def __getitem__(self, place: int) -> Point: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, place: int | slice) -> Point | tuple[Point, ...]:
        return self.points[place]


def eps_curve(
    model: nn.Module,
    data: Any,
    eps_values: Iterable[float | str],
    attack: str | Mapping[str, Any] = "pgd20",
    *,
    norm: Literal["linf", "l2"] = "linf",
    batch_size: int = 256,
    device: torch.device | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    folder: str | Path | None = None,
) -> Curve:
    """Accuracy at several strengths, weakest first: the curve of :func:`evaluate_spectrum`.

    Parameters
    ----------
    eps_values
        Radii in pixel units, any order; 0 is the clean accuracy.
    attack
        Name or mapping; its default step size follows the radius.
    model, data, norm, batch_size, device, limit, seed, progress, folder
        As in :func:`evaluate_spectrum`.

    Returns
    -------
    Curve
        Pairs (eps, accuracy in [0, 1]) with rising eps; the curve never rises.

    Raises
    ------
    UserError, NonFiniteOutput
        As :func:`evaluate`.
    """
    found = evaluate_spectrum(
        model,
        data,
        eps_values,
        attack,
        norm=norm,
        batch_size=batch_size,
        device=device,
        limit=limit,
        seed=seed,
        progress=progress,
        folder=folder,
    )
    return Curve(tuple(found.curve()), found.reliability)


def steps_curve(
    model: nn.Module,
    data: Any,
    steps: Iterable[int] = (7, 10, 20, 40, 100),
    attack: str | Mapping[str, Any] = "pgd",
    *,
    threat: ThreatModel | Mapping[str, Any] | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    folder: str | Path | None = None,
) -> Curve:
    """Accuracy under one attack with several numbers of steps, fewest first.

    A robust network's curve is flat at the end; one that still falls says that the attack was too
    short (RobNet's figure 10 has PGD from 7 to 1,000 steps).

    A picture that is broken by few steps counts as broken by more and is not attacked again, so the
    curve never rises. For PGD and MI-FGSM nothing is lost by that: their step size does not depend
    on the number of steps, so a longer run passes through the pictures of the shorter one, and the
    values are those of :func:`evaluate` with each number.

    Parameters
    ----------
    steps
        Numbers of steps, any order.
    attack
        Name without a number, or mapping without `steps`, of an attack that has steps.
    model, data, threat, batch_size, device, limit, seed, progress, folder
        As in :func:`evaluate`; further numbers of steps may be asked for later.

    Returns
    -------
    Curve
        Pairs (steps, accuracy in [0, 1]) with rising steps.

    Raises
    ------
    UserError, NonFiniteOutput
        As :func:`evaluate`.
    """
    if not isinstance(attack, (str, Mapping)):
        raise UserError("steps_curve takes the attack as a name or a mapping without steps")
    spec: dict[str, Any] = {"name": attack} if isinstance(attack, str) else dict(attack)
    numbers = list(steps)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UserError(f"steps: {number!r} is not allowed; a whole number >= 1 is")
    if not numbers or "steps" in spec:
        raise UserError("steps_curve needs at least one number of steps, and none in the attack")
    ball, rising = as_threat(threat), sorted(set(numbers))
    specs: list[dict[str, Any]] = [{**spec, "steps": number} for number in rising]
    made = [make_attacks(s, ball)[0] for s in specs]
    survivors, n = [0] * len(made), 0
    with ExitStack() as stack:
        suite = None
        if folder is not None:
            # Not by their keys: a label of the caller's has no number in it.
            names = [f"{one.key}, {number} steps" for one, number in zip(made, rising, strict=True)]
            parts = dict(zip(names, map(attack_text, made), strict=True))
            home = stack.enter_context(EvaluationFolder(folder, model, parts, seed, ball))
            suite = SuiteProgress(home, names, made)
            made = suite.attacks
        monitor = Monitor(model, made, seed=seed)
        stack.enter_context(undisturbed(model))
        for batch in batches(model, data, batch_size, device, limit):
            good = is_correct(model, batch.x, batch.y, batch.largest_label)
            monitor.clean(batch.x, batch.y, good, batch.first, batch.total)
            left = good.nonzero().flatten()
            n += len(batch.y)
            batch.report(progress, "clean")
            for number, one in enumerate(made):
                left = left[survives(model, one, batch, left, seed, monitor, suite=suite)]
                survivors[number] += len(left)
                batch.report(progress, one.key)
        outcomes = [
            Outcome(one, torch.arange(n) < count)  # which pictures does not matter here
            for one, count in zip(made, survivors, strict=True)
        ]
        reliability = monitor.finish(outcomes, batch_size=batch_size, nested=True)
    why = CANNOT_FAIL + "what few steps break counts as broken by more"
    reliability = reliability.replaced([Check("rises-with-steps", "not run", why)])
    points = tuple((number, count / n) for number, count in zip(rising, survivors, strict=True))
    return Curve(points, reliability)
