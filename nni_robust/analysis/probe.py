"""Can a line tell robust from fragile topologies? A linear probe over the bits of the code.

RobNet (Guo et al., CVPR 2020, arXiv 1911.10695), section 3.3 and figure 4: the 300 best of 1,000
candidates against the 300 worst, scikit-learn's `SGDClassifier` on 28 bits, 98.7 % accuracy, nearly
all weights positive.

The paper's 98.7 % is an accuracy on the very candidates that the classifier was fitted to. With 28
weights a few dozen candidates are separable whatever their scores, so that number alone proves
nothing; the cross-validated accuracy beside it does. The paper names no settings of the
classifier; scikit-learn's defaults (a linear support vector machine) are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nni_robust.errors import UserError

__all__ = ["LinearProbe", "linear_probe"]

#: Candidates per side below which no classifier is fitted.
_FEWEST = 5


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A classifier of the best against the worst candidates.

    Parameters
    ----------
    n_top, n_bottom
        Candidates of each class.
    train_accuracy
        Share of these candidates that the classifier fitted to them gets right (the paper's
        number); 0.5 is chance.
    validated_accuracy, low, high
        Share that classifiers get right which did not see the candidate (stratified
        cross-validation), and its 95 % interval (Wilson).
    folds
        Of the cross-validation.
    weights
        One per bit; positive where the operation marks the better candidates.
    intercept
        Of the classifier fitted to all.
    reason
        Why nothing was fitted, else None; then the numbers are None and there are no weights.
    """

    n_top: int
    n_bottom: int
    train_accuracy: float | None = None
    validated_accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    folds: int | None = None
    weights: tuple[float, ...] = ()
    intercept: float | None = None
    reason: str | None = None

    @property
    def positive_share(self) -> float | None:
        """Share of the weights that are positive; None without weights."""
        return sum(w > 0 for w in self.weights) / len(self.weights) if self.weights else None


def linear_probe(
    bits: Sequence[Sequence[int]],
    robust: Sequence[float],
    *,
    share: float = 0.3,
    folds: int = 5,
    seed: int = 0,
) -> LinearProbe:
    """Fit and cross-validate the probe.

    Parameters
    ----------
    bits
        (N, B) zeros and ones, one row per candidate.
    robust
        (N,) robust accuracies.
    share
        Part of the candidates that is the top, and the bottom, in (0, 0.5]; 0.3 in the paper.
    folds
        Of the cross-validation, 2 to 5 (the smallest class has at least 5 candidates).
    seed
        Of the classifier and of the folds.

    Returns
    -------
    LinearProbe
        Without numbers where a class would have fewer than 5 candidates, where a robust accuracy
        belongs to both classes, or where codes have different lengths.

    Raises
    ------
    UserError
        If a setting is out of range.
    """
    if not 0 < share <= 0.5:
        raise UserError(f"share: {share!r} is not allowed; above 0 and up to 0.5 is")
    if not 2 <= folds <= _FEWEST:
        raise UserError(f"folds: {folds!r} is not allowed; 2 to {_FEWEST} is")
    k = round(share * len(robust))
    k = min(k, len(robust) // 2)
    if k < _FEWEST:
        return LinearProbe(k, k, reason=f"{k} candidates per class, at least {_FEWEST} are needed")
    if len({len(row) for row in bits}) != 1:
        return LinearProbe(k, k, reason="the codes have different lengths")
    order = np.argsort(np.asarray(robust, dtype=float), kind="stable")
    bottom, top = order[:k], order[-k:]
    if robust[bottom[-1]] == robust[top[0]]:
        return LinearProbe(
            k, k, reason="best and worst candidates overlap: too many have the same robust accuracy"
        )
    # Imported here: the rest of the analysis, and so a report, need no scikit-learn.
    from scipy.stats import binomtest
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x = np.asarray(bits, dtype=float)[np.concatenate([bottom, top])]
    y = np.repeat([-1, 1], k)
    classifier = SGDClassifier(random_state=seed).fit(x, y)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    right = int((cross_val_predict(SGDClassifier(random_state=seed), x, y, cv=split) == y).sum())
    ends = binomtest(right, len(y)).proportion_ci(method="wilson")
    return LinearProbe(
        k,
        k,
        train_accuracy=float(classifier.score(x, y)),
        validated_accuracy=right / len(y),
        low=float(ends.low),
        high=float(ends.high),
        folds=folds,
        weights=tuple(float(weight) for weight in classifier.coef_[0]),
        intercept=float(classifier.intercept_[0]),
    )
