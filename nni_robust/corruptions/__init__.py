"""Common corruptions, made on the fly: noise, blur, weather and digital artefacts.

The benchmark of Hendrycks and Dietterich, "Benchmarking neural network robustness to common
corruptions and perturbations" (ICLR 2019, 1903.12261), for any data set: 15 corruptions and three
more in five severities, with the published strengths for CIFAR's and for ImageNet's size. What
agrees with the published data sets, and what does not: ``docs/corruptions.md``.
"""

from __future__ import annotations

from nni_robust.corruptions._corrupt import corrupt, names_of, scale_of
from nni_robust.corruptions._evaluate import CorruptionResult, evaluate_corruptions
from nni_robust.corruptions._parameters import EXTRA, STANDARD, Scale

__all__ = [
    "EXTRA",
    "STANDARD",
    "CorruptionResult",
    "Scale",
    "corrupt",
    "evaluate_corruptions",
    "names_of",
    "scale_of",
]
