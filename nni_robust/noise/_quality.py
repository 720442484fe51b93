"""Is an estimator better than doing nothing clever? The question is asked before it is used."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from nni_robust.errors import UserError
from nni_robust.noise._base import TINY, NoiseEstimator, lengths, make_estimator
from nni_robust.noise._estimate import Target, estimate_adversarial

__all__ = ["Choice", "NoiseQuality", "choose_estimator", "measure_quality"]

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class NoiseQuality:
    """How near estimated noises are to real ones, by strength; pictures without noise left out.

    Parameters
    ----------
    error
        Mean of |estimated - real| / |real| (L2 norms).
    cosine
        Mean cosine of the angle between both.
    """

    error: dict[float, float]
    cosine: dict[float, float]

    @property
    def mean_error(self) -> float:
        """Mean over the strengths."""
        return sum(self.error.values()) / len(self.error)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which estimator to use, and why.

    Parameters
    ----------
    estimator
        The better one.
    fell_back
        Whether it is the baseline.
    reason
        One sentence.
    quality, baseline_quality
        Of the candidate and of the baseline.
    """

    estimator: NoiseEstimator
    fell_back: bool
    reason: str
    quality: NoiseQuality
    baseline_quality: NoiseQuality

    def record(self) -> dict[str, Any]:
        """Plain numbers for a JSON record."""
        return {
            "estimator": self.estimator.name,
            "fell_back": self.fell_back,
            "reason": self.reason,
            **{
                f"{key}_{what}": {f"{eps:g}": v for eps, v in getattr(found, what).items()}
                for key, found in (("own", self.quality), ("baseline", self.baseline_quality))
                for what in ("error", "cosine")
            },
        }


@torch.no_grad()
def measure_quality(
    estimator: NoiseEstimator,
    x: Tensor,
    adversarial: Mapping[float, Tensor],
    wanted: Iterable[float],
    *,
    target: Target = "ratio",
    norm: Literal["linf", "l2"] = "linf",
    clamp: bool = True,
) -> NoiseQuality:
    """Compare estimated with real noise on pictures that the estimator was not trained on.

    Parameters
    ----------
    x
        (N, C, H, W), clean pictures.
    adversarial
        Real adversarial pictures by strength: those at `wanted` are what is looked for, all others
        are the sources.
    wanted
        Strengths to estimate.
    estimator, target, norm, clamp
        As in :func:`estimate_adversarial`.

    Raises
    ------
    UserError
        If a strength in `wanted` was not attacked, or no other strength is left.
    """
    asked = [float(eps) for eps in wanted]
    missing = [eps for eps in asked if eps not in adversarial]
    if missing or not asked:
        raise UserError(f"wanted: {asked} is not allowed; strengths that were attacked are")
    sources = {eps: adv for eps, adv in adversarial.items() if eps not in asked}
    found = estimate_adversarial(
        estimator, x, sources, asked, target=target, norm=norm, clamp=clamp
    )
    error, cosine = {}, {}
    for eps, adv in found.items():
        estimated, real = adv - x, adversarial[eps] - x
        size = lengths(real)
        some = size > 0
        wrong = lengths(estimated - real)[some] / size[some]
        product = (estimated * real).flatten(1).sum(1)[some]
        angle = product / (size[some] * lengths(estimated)[some] + TINY)
        error[eps] = float(wrong.mean()) if bool(some.any()) else 0.0
        cosine[eps] = float(angle.mean()) if bool(some.any()) else 1.0
    return NoiseQuality(error, cosine)


def choose_estimator(
    estimator: NoiseEstimator,
    x: Tensor,
    adversarial: Mapping[float, Tensor],
    wanted: Iterable[float],
    *,
    baseline: str = "scale",
    target: Target = "ratio",
    norm: Literal["linf", "l2"] = "linf",
    clamp: bool = True,
) -> Choice:
    """The estimator, or the baseline where the estimator's noise is no nearer to the real one.

    Compared is the relative error, mean over strengths, on the same pictures. A fall back is also
    logged as a warning.

    Parameters
    ----------
    baseline
        Name of an estimator that learns nothing.
    estimator, x, adversarial, wanted, target, norm, clamp
        As in :func:`measure_quality`.
    """
    asked = list(wanted)
    settings: dict[str, Any] = {"target": target, "norm": norm, "clamp": clamp}
    simple = make_estimator(baseline, estimator.input_shape).to(x.device)
    quality = measure_quality(estimator, x, adversarial, asked, **settings)
    other = measure_quality(simple, x, adversarial, asked, **settings)
    # NaN passes no comparison, so a broken estimator falls back.
    better = estimator.name == baseline or quality.mean_error < other.mean_error
    relation = "is below" if better else "is not below"
    reason = (
        f"the relative error of '{estimator.name}' on {len(x)} pictures, {quality.mean_error:.3f}, "
        f"{relation} that of '{baseline}', {other.mean_error:.3f}"
    )
    if estimator.name == baseline:
        reason = f"'{baseline}' is the baseline itself"
    if not better:
        _logger.warning("noise estimator: %s; '%s' is used", reason, baseline)
    return Choice(estimator if better else simple, not better, reason, quality, other)
