"""Robustness over a spectrum of strengths: accuracy and loss at many eps in one rising pass.

The idea is that of Wsr-NAS ("Neural Architecture Search for Wide Spectrum Adversarial Robustness",
AAAI 2023): a network should hold at many strengths, not at the one it was trained for. What is
ours is the pass: from one strength to the next an attack continues where it was.
"""

from __future__ import annotations

from nni_robust.spectrum._evaluate import (
    MEAN_STRENGTHS,
    SEARCH_STRENGTHS,
    SEARCH_WEIGHTS,
    Spectrum,
    evaluate_spectrum,
)
from nni_robust.spectrum._losses import SpectrumLosses, spectrum_losses
from nni_robust.spectrum._passes import Passes, count_passes

__all__ = [
    "MEAN_STRENGTHS",
    "SEARCH_STRENGTHS",
    "SEARCH_WEIGHTS",
    "Passes",
    "Spectrum",
    "SpectrumLosses",
    "count_passes",
    "evaluate_spectrum",
    "spectrum_losses",
]
