"""From adversarial pictures at some strengths to adversarial pictures at others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from nni_robust.attacks._norms import ball_around
from nni_robust.config import parse_ratio
from nni_robust.errors import UserError
from nni_robust.noise._base import NoiseEstimator, lengths
from nni_robust.threat import ThreatModel

__all__ = ["WSR_CONSTANTS", "Target", "estimate_adversarial", "target_norms"]

#: L2 norms that the Wsr-NAS repository asks for at each L∞ strength, of every 3 x 32 x 32 picture.
WSR_CONSTANTS = {0.045: 2.3, 0.075: 3.9, 0.105: 5.5}

#: How long the noise at a strength shall be: each picture by itself, or one number per strength.
Target = Literal["ratio"] | Mapping[float, float]


def target_norms(
    norms: Tensor, strengths: Iterable[float], wanted: Iterable[float], target: Target = "ratio"
) -> Tensor:
    """L2 norms of the noises to estimate.

    Parameters
    ----------
    norms
        (B, m), L2 norms of each picture's real noises.
    strengths
        The m strengths that they belong to, in the same order.
    wanted
        The n strengths to estimate.
    target
        ``"ratio"``: for each picture, piecewise linear in eps through (0, 0) and the real norms;
        beyond the largest strength the last piece goes on. A mapping: a constant for each
        strength, such as :data:`WSR_CONSTANTS`.

    Returns
    -------
    Tensor
        (B, n), not negative.

    Raises
    ------
    UserError
        On strengths that are repeated, not positive, or without a constant.
    """
    known, asked = [float(e) for e in strengths], [float(e) for e in wanted]
    if len(set(known)) < len(known) or min(known, default=0.0) <= 0 or len(known) != norms.shape[1]:
        raise UserError(f"strengths: {known} is not allowed; different numbers above 0 are")
    if target != "ratio":
        if not isinstance(target, Mapping):
            raise UserError(f"target: {target!r} is not allowed; 'ratio' or a mapping by eps is")
        table = {parse_ratio(eps): value for eps, value in target.items()}
        missing = [eps for eps in asked if eps not in table]
        if missing:
            raise UserError(f"target: no constant for eps {missing[0]:g}")
        constants = torch.tensor([float(table[eps]) for eps in asked]).to(norms)
        return constants.expand(len(norms), -1)
    order = sorted(range(len(known)), key=known.__getitem__)
    eps = [0.0, *(known[i] for i in order)]
    knots = torch.cat([torch.zeros_like(norms[:, :1]), norms[:, order]], 1)
    columns = []
    for value in asked:
        high = next((i for i, e in enumerate(eps[1:], 1) if e >= value), len(eps) - 1)
        share = (value - eps[high - 1]) / (eps[high] - eps[high - 1])
        columns.append(torch.lerp(knots[:, high - 1], knots[:, high], share).clamp_min(0))
    return torch.stack(columns, 1)


@torch.no_grad()
def estimate_adversarial(
    estimator: NoiseEstimator,
    x: Tensor,
    adversarial: Mapping[float, Tensor],
    wanted: Iterable[float | str],
    *,
    target: Target = "ratio",
    norm: Literal["linf", "l2"] = "linf",
    clamp: bool = True,
    batch_size: int = 256,
) -> dict[float, Tensor]:
    """Estimate adversarial pictures at strengths that were not attacked.

    Parameters
    ----------
    estimator
        Used in evaluation mode; its own mode is put back.
    x
        (N, C, H, W), clean pictures in [0, 1].
    adversarial
        Attacked pictures, like `x`, by strength (such as ``spectrum_losses(...).adversarial``).
    wanted
        Strengths to estimate, in pixel units.
    target
        See :func:`target_norms`.
    norm
        Norm of the strengths.
    clamp
        Move the result into the ball of its strength and into [0, 1]. The repository does neither,
        so its pictures are stronger than their strength says.
    batch_size
        Pictures at a time.

    Returns
    -------
    dict
        Pictures like `x`, by strength, in the order of `wanted`.

    Raises
    ------
    UserError
        On missing or unfitting pictures or strengths.
    """
    if not adversarial:
        raise UserError("adversarial: at least one strength is needed to estimate others from")
    for eps, adv in adversarial.items():
        if adv.shape != x.shape:
            raise UserError(f"adversarial: the pictures at eps {eps:g} do not fit x")
    asked: list[Any] = [parse_ratio(eps) for eps in wanted]
    threats = [ThreatModel(norm, eps) for eps in asked]
    parts: list[list[Tensor]] = [[] for _ in asked]
    training = estimator.training
    estimator.eval()
    try:
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            clean = x[rows]
            sources = torch.stack([adv[rows] - clean for adv in adversarial.values()], 1)
            targets = target_norms(lengths(sources), adversarial, asked, target)
            noise = estimator(sources, clean, targets)
            for k, threat in enumerate(threats):
                adv = clean + noise[:, k]
                if clamp:
                    adv = ball_around(clean, threat).exact(adv) if threat.eps > 0 else clean
                parts[k].append(adv)
    finally:
        estimator.train(training)
    return {
        eps: torch.cat(found) if found else x.clone()
        for eps, found in zip(asked, parts, strict=True)
    }
