"""Accuracy at many strengths in one pass over the pictures."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from nni_robust._pictures import Progress, batches
from nni_robust.attacks import undisturbed
from nni_robust.config import parse_ratio
from nni_robust.errors import UserError
from nni_robust.reliability import Monitor, Outcome, Reliability, need_reliability
from nni_robust.spectrum._climb import Climb, judge, open_folder
from nni_robust.spectrum._passes import count_passes
from nni_robust.spectrum._rungs import Steps, make_rungs

__all__ = [
    "MEAN_STRENGTHS",
    "SEARCH_STRENGTHS",
    "SEARCH_WEIGHTS",
    "Spectrum",
    "Weights",
    "evaluate_spectrum",
]

#: Strengths (L∞, pixel units) whose plain mean is the "average robust accuracy" of Wsr-NAS's table
#: 1. (The repository evaluates 0.105, not 0.1.)
MEAN_STRENGTHS = (0.03, 0.1, 0.17, 0.25)
#: Strengths that Wsr-NAS searches with, and their weights in its objective.
SEARCH_STRENGTHS = (0.03, 0.045, 0.06, 0.075, 0.09, 0.105)
SEARCH_WEIGHTS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)

#: Weights of the strengths: by strength, or in the order of the strengths. None is equal weights.
Weights = Mapping[Any, float] | Sequence[float] | None


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Accuracy of one network over a spectrum of strengths.

    Parameters
    ----------
    accuracy
        Accuracy in [0, 1] at each eps (pixel units), rising eps; it never rises with eps.
    clean
        Accuracy without an attack.
    losses
        Mean cross entropy of all pictures at each eps. Pictures are attacked until they break, so
        this is what the attack had reached then, a lower bound of the worst loss;
        :func:`spectrum_losses` measures losses to the end.
    keys
        Name of each strength's accuracy in results, such as ``"pgd20@8/255"``.
    weights
        Weight of each strength in `average`.
    n
        Number of pictures.
    passes, forwards
        Pictures that went forward and backward, and those that went forward only.
    seconds
        Wall time.
    reliability
        Which checks of these figures ran, and which failed. Those of the network and of the
        attacked pictures always run; `passes` and `forwards` are without them.
    """

    accuracy: dict[float, float]
    clean: float
    losses: dict[float, float]
    keys: dict[float, str]
    weights: dict[float, float]
    n: int
    passes: int
    forwards: int
    seconds: float
    reliability: Reliability

    def __post_init__(self) -> None:
        need_reliability(self)

    @property
    def auc(self) -> float:
        """Mean accuracy over all strengths from 0 to the largest, in [0, 1].

        The area under the piecewise linear curve through (0, clean) and the measured strengths
        (trapezoids), divided by the largest eps. With no eps above 0 it is the clean accuracy.
        """
        points = [(0.0, self.clean), *((e, a) for e, a in self.accuracy.items() if e > 0)]
        if len(points) == 1:
            return self.clean
        area = sum((e2 - e1) * (a1 + a2) / 2 for (e1, a1), (e2, a2) in itertools.pairwise(points))
        return area / points[-1][0]

    @property
    def average(self) -> float:
        """Weighted mean of the accuracies, in [0, 1]; a strength of 0 has no weight by default."""
        total = sum(self.weights.values())
        return sum(w * self.accuracy[eps] for eps, w in self.weights.items()) / total

    def mean(self, eps_values: Iterable[float] = MEAN_STRENGTHS) -> float | None:
        """Plain mean of the accuracies at some strengths; None where one was not measured."""
        found = [self.accuracy.get(eps) for eps in eps_values]
        known = [a for a in found if a is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    def metrics(self) -> dict[str, float]:
        """``{"clean": 0.8, "pgd20@0.03": 0.5, …, "average": 0.3, "auc": 0.4}``."""
        return {
            "clean": self.clean,
            **{self.keys[eps]: value for eps, value in self.accuracy.items()},
            "average": self.average,
            "auc": self.auc,
        }

    def curve(self) -> list[tuple[float, float]]:
        """Pairs (eps, accuracy) with rising eps."""
        return list(self.accuracy.items())


def evaluate_spectrum(
    model: nn.Module,
    data: Any,
    eps_values: Iterable[float | str] = SEARCH_STRENGTHS,
    attack: str | Mapping[str, Any] = "pgd20",
    *,
    norm: Literal["linf", "l2"] = "linf",
    weights: Weights = None,
    steps: Steps = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    warm_start: bool = True,
    progress: Progress | None = None,
    thorough: bool = False,
    folder: str | Path | None = None,
) -> Spectrum:
    """Measure accuracy at several strengths, weakest first, in one pass.

    Only pictures that withstood all smaller strengths are attacked: what broke a picture lies
    inside the larger ball too. So the curve never rises, and the pass costs less than an attack
    for each strength. With `warm_start` a gradient attack of several steps continues from the
    picture that it had at the strength before, the change stretched by the ratio of the strengths;
    the first strength starts as the attack says, so one strength alone is :func:`evaluate`.

    Parameters
    ----------
    model
        Network from pictures (N, C, H, W) in [0, 1] to logits (N, K); it is left exactly as it was.
    data
        As in :func:`nni_robust.evaluate`.
    eps_values
        Radii in pixel units, any order, each also as ``"8/255"``; 0 is the clean accuracy.
    attack
        Name or mapping of an untargeted attack, without eps and norm: ``"fgsm"``, ``"pgd20"``,
        ``"torchattacks:PGD"``, ``"autoattack"``. Its default step follows the radius; a mapping may
        have ``rel_step``, the length of a step in units of eps / steps.
    norm
        ``"linf"`` or ``"l2"``.
    weights
        Of the strengths in :attr:`Spectrum.average`: a mapping by eps, or a list in the order of
        `eps_values`; None weighs all above 0 equally.
    steps
        Replaces the attack's number of steps: one number, a list in the order of `eps_values`, or a
        mapping by eps.
    limit, batch_size, device, progress
        As in :func:`nni_robust.evaluate`; the progress' stages are ``"clean"`` and the keys.
    seed
        Of random starts; results do not depend on the batch size, up to rounding.
    warm_start
        False attacks each strength on its own, from its own start.
    thorough
        As in :func:`nni_robust.evaluate`, but for twice the steps: a strength's figure is not that
        of one attack.
    folder
        Where to keep which pictures were attacked at which strength and what came of it, as in
        :func:`nni_robust.evaluate`: the same call goes on after a kill and repeats at most one
        batch at one strength. More pictures may be asked for later; other strengths are other
        settings. `passes` and `forwards` are those of an uninterrupted call, except of AutoAttack,
        which keeps its own: then they are those of this call.

    Raises
    ------
    UserError
        On unusable data, a strength or weight out of range, an unusable attack; a folder as in
        :func:`nni_robust.evaluate`.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    started = time.perf_counter()
    values = _as_list(eps_values)
    rungs = make_rungs(
        attack,
        values,
        norm,
        steps=steps,
        early_exit=True,
        warm_start=warm_start,
        what="evaluate_spectrum",
    )
    weighed = _weights(weights, values, [rung.eps for rung in rungs])
    clean = n = 0
    survivors, losses = [0] * len(rungs), [0.0] * len(rungs)
    earlier = torch.zeros(2, dtype=torch.float64)
    with ExitStack() as stack:
        home = kept = None
        if folder is not None:
            home, rungs, kept = open_folder(stack, folder, model, rungs, seed)
        attacks = [rung.attack for rung in rungs]
        monitor = Monitor(model, attacks, seed=seed, thorough=thorough, home=home)
        stack.enter_context(undisturbed(model))
        passes = stack.enter_context(count_passes(model))
        for batch in batches(model, data, batch_size, device, limit):
            good, loss = judge(model, batch.x, batch.y, batch.largest_label)
            with passes.uncounted():
                monitor.clean(batch.x, batch.y, good, batch.first, batch.total)
            climb = Climb(
                model,
                rungs,
                batch,
                good,
                loss,
                seed=seed,
                monitor=monitor,
                passes=passes,
                folder=kept,
            )
            n, clean = n + len(batch.y), clean + len(climb.left)
            batch.report(progress, "clean")
            for number, rung in enumerate(rungs):
                climb.up(number)
                survivors[number] += len(climb.left)
                losses[number] += float(climb.loss.sum())
                batch.report(progress, rung.attack.key)
            earlier += climb.earlier
        outcomes = [
            Outcome(rung.attack, torch.arange(n) < count)  # which pictures does not matter here
            for rung, count in zip(rungs, survivors, strict=True)
        ]
        with passes.uncounted():
            reliability = monitor.finish(outcomes, batch_size=batch_size, nested=True)
    eps_order = [rung.eps for rung in rungs]
    return Spectrum(
        {eps: count / n for eps, count in zip(eps_order, survivors, strict=True)},
        clean / n,
        {eps: total / n for eps, total in zip(eps_order, losses, strict=True)},
        {rung.eps: rung.attack.key for rung in rungs},
        weighed,
        n,
        passes.backward + round(float(earlier[0])),
        passes.forward + round(float(earlier[1])),
        time.perf_counter() - started,
        reliability,
    )


def _as_list(eps_values: Any) -> list[Any]:
    if isinstance(eps_values, (str, bytes, Mapping)) or not isinstance(eps_values, Iterable):
        raise UserError(f"eps_values: {eps_values!r} is not allowed; a list of strengths is")
    return list(eps_values)


def _weights(weights: Weights, values: list[Any], measured: list[float]) -> dict[float, float]:
    """Weight of each measured strength."""
    if weights is None:
        return {eps: 1.0 for eps in measured if eps > 0} or dict.fromkeys(measured, 1.0)
    if isinstance(weights, Mapping):
        found: dict[Any, Any] = {parse_ratio(eps): w for eps, w in weights.items()}
    elif isinstance(weights, Sequence) and not isinstance(weights, str):
        if len(weights) != len(values):
            raise UserError(
                f"weights: {len(weights)} numbers for {len(values)} strengths are not allowed"
            )
        found = dict(zip(map(parse_ratio, values), weights, strict=True))
    else:
        raise UserError(f"weights: {weights!r} is not allowed; a list or a mapping by eps is")
    for eps, weight in found.items():
        if eps not in measured:
            raise UserError(f"weights: {eps!r} is none of the strengths")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight >= 0:
            raise UserError(f"weights: {weight!r} is not allowed; a number >= 0 is")
    if not 0 < sum(found.values()) < float("inf"):
        raise UserError("weights: at least one must be above 0, and all finite")
    return {float(eps): float(weight) for eps, weight in found.items()}
