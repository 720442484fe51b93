"""Correlations with confidence intervals, for studies of a few dozen to a thousand candidates.

Intervals: bias-corrected and accelerated bootstrap of pairs (B. Efron, "Better bootstrap confidence
intervals", JASA 1987; `scipy.stats.bootstrap`), or a normal interval of arctanh(r), whose standard
error is 1 / sqrt(n - 3) for Pearson (R. A. Fisher 1921), sqrt((1 + r² / 2) / (n - 3)) for Spearman
(D. G. Bonett, T. A. Wright 2000) and sqrt(0.437 / (n - 4)) for Kendall (E. C. Fieller,
H. O. Hartley, E. S. Pearson 1957).

Default: bootstrap from 20 pairs on, the normal interval below. Among 300 uncorrelated samples of 10
pairs, 95 % intervals of Pearson contained 0 in 89 % with the bootstrap and in 94 % with arctanh; of
20 pairs in 94 % and 96 %. Too narrow an interval would find what is not there.

Nothing returned is NaN: what is not defined is None, with the reason.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["Correlation", "correlate", "kendall_tau", "pearson", "spearman"]

Kind = Literal["pearson", "spearman", "kendall"]
Interval = Literal["auto", "bootstrap", "fisher"]
Floats = NDArray[np.float64]

#: Pairs from which the bootstrap's coverage is right, see above.
_ENOUGH_TO_RESAMPLE = 20


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation coefficient and its confidence interval.

    Parameters
    ----------
    kind
        ``"pearson"``, ``"spearman"`` or ``"kendall"`` (tau-b).
    n
        Pairs that it was computed from.
    value, low, high
        Coefficient and ends of the interval, in [-1, 1]; all None where it is not defined.
    confidence
        Coverage of the interval.
    interval
        How it was made: ``"bootstrap"`` or ``"fisher"``; None without an interval.
    reason
        Why there is no value, else None.
    """

    kind: Kind
    n: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    interval: Literal["bootstrap", "fisher"] | None = None
    reason: str | None = None

    @property
    def direction(self) -> Literal["positive", "negative", "undecided"]:
        """The sign that the whole interval has; undecided where it contains 0 or does not exist."""
        if self.low is not None and self.low > 0:
            return "positive"
        if self.high is not None and self.high < 0:
            return "negative"
        return "undecided"

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.kind.capitalize()} not defined: {self.reason}"
        return f"{self.kind.capitalize()} {self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def pearson(x: ArrayLike, y: ArrayLike, **settings: Any) -> Correlation:
    """Pearson's r (linear); see :func:`correlate` for the settings."""
    return correlate(x, y, "pearson", **settings)


def spearman(x: ArrayLike, y: ArrayLike, **settings: Any) -> Correlation:
    """Spearman's rho (of ranks); see :func:`correlate` for the settings."""
    return correlate(x, y, "spearman", **settings)


def kendall_tau(x: ArrayLike, y: ArrayLike, **settings: Any) -> Correlation:
    """Kendall's tau-b (order of pairs); see :func:`correlate` for the settings."""
    return correlate(x, y, "kendall", **settings)


def correlate(
    x: ArrayLike,
    y: ArrayLike,
    kind: Kind = "pearson",
    *,
    interval: Interval = "auto",
    confidence: float = 0.95,
    resamples: int = 2000,
    minimum: int = 5,
    seed: int = 0,
) -> Correlation:
    """Correlate two columns.

    Parameters
    ----------
    x, y
        (N,) numbers. A pair with None, NaN or an infinity in it is left out.
    kind
        ``"pearson"``, ``"spearman"`` or ``"kendall"``.
    interval
        ``"bootstrap"``, ``"fisher"``, or ``"auto"``: by the number of pairs. A bootstrap whose
        resamples are degenerate (nearly all pairs equal, or a perfect correlation) is replaced by
        ``"fisher"``.
    confidence
        Coverage of the interval, in (0, 1).
    resamples
        Of the bootstrap.
    minimum
        Fewer pairs than this (or than 5) give no value.
    seed
        Of the bootstrap; the same seed gives the same interval.

    Raises
    ------
    ValueError
        If the columns differ in length.
    """
    a, b = _columns(x, y)
    n = len(a)
    if n < max(minimum, 5):
        reason = f"too few values: {n}, at least {max(minimum, 5)} are needed"
        return Correlation(kind, n, confidence=confidence, reason=reason)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        reason = f"all {n} values of one quantity are equal"
        return Correlation(kind, n, confidence=confidence, reason=reason)
    value = _coefficient(a, b, kind)
    if value is None:  # the spread vanishes in rounding
        reason = "the values of one quantity hardly differ"
        return Correlation(kind, n, confidence=confidence, reason=reason)
    if interval == "bootstrap" or (interval == "auto" and n >= _ENOUGH_TO_RESAMPLE):
        ends = _bootstrap(a, b, kind, confidence, resamples, seed)
        if ends is not None:
            return Correlation(kind, n, value, *ends, confidence, "bootstrap")
    ends = _fisher(value, n, kind, confidence)
    return Correlation(kind, n, value, *ends, confidence, "fisher")


def _columns(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if len(a) != len(b):
        raise ValueError(f"columns of {len(a)} and {len(b)} values cannot be correlated")
    whole = np.isfinite(a) & np.isfinite(b)
    return a[whole], b[whole]


def _coefficient(a: Floats, b: Floats, kind: Kind) -> float | None:
    function = {
        "pearson": stats.pearsonr,
        "spearman": stats.spearmanr,
        "kendall": stats.kendalltau,
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly constant: told by the result
        value = float(function(a, b)[0])
    return min(1.0, max(-1.0, value)) if math.isfinite(value) else None


def _bootstrap(
    a: Floats, b: Floats, kind: Kind, confidence: float, resamples: int, seed: int
) -> tuple[float, float] | None:
    statistic = {"pearson": _rowwise, "spearman": _rowwise_ranks, "kendall": _tau}[kind]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # degenerate resamples: told by the result
        found = stats.bootstrap(
            (a, b),
            statistic,
            paired=True,
            vectorized=kind != "kendall",
            n_resamples=resamples,
            batch=500,
            confidence_level=confidence,
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    low, high = (float(end) for end in found.confidence_interval)
    return (max(-1.0, low), min(1.0, high)) if math.isfinite(low + high) else None


def _rowwise(a: Floats, b: Floats, axis: int = -1) -> Floats:
    """Pearson's r along an axis, for many resamples at once; NaN where one is constant."""
    a = a - a.mean(axis, keepdims=True)
    b = b - b.mean(axis, keepdims=True)
    spread = np.sqrt((a * a).sum(axis) * (b * b).sum(axis))
    result: Floats = (a * b).sum(axis) / spread
    return result


def _rowwise_ranks(a: Floats, b: Floats, axis: int = -1) -> Floats:
    return _rowwise(stats.rankdata(a, axis=axis), stats.rankdata(b, axis=axis), axis)


def _tau(a: Floats, b: Floats) -> float:
    return float(stats.kendalltau(a, b)[0])


def _fisher(value: float, n: int, kind: Kind, confidence: float) -> tuple[float, float]:
    if abs(value) == 1:  # arctanh is infinite; every interval of it is the point itself
        return value, value
    variance = {
        "pearson": 1 / (n - 3),
        "spearman": (1 + value**2 / 2) / (n - 3),
        "kendall": 0.437 / (n - 4),
    }[kind]
    half = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
