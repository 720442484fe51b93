"""Adversarial noise at strengths that were not attacked, from noise at strengths that were.

Wsr-NAS ("Neural Architecture Search for Wide Spectrum Adversarial Robustness", Cheng et al., AAAI
2023, DOI 10.1609/aaai.v37i1.25118) attacks every picture at three strengths and lets a small
network, the AN-Estimator, produce the noise at three more. Here are its two networks, ``basic`` and
``plus``, with the mathematics that the paper means (see :mod:`nni_robust.noise._basic` and
:mod:`nni_robust.noise._plus` for what the repository does otherwise), two estimators that learn
nothing and say what the networks are worth, ``scale`` and ``interpolate``, their training, and the
test whether a network has become better than the simple ones.
"""

from __future__ import annotations

# These register their estimators.
from nni_robust.noise import _baselines as _baselines
from nni_robust.noise._base import NoiseEstimator, estimators, list_estimators, make_estimator
from nni_robust.noise._baselines import InterpolateEstimator, ScaleEstimator
from nni_robust.noise._basic import BasicEstimator
from nni_robust.noise._estimate import WSR_CONSTANTS, estimate_adversarial, target_norms
from nni_robust.noise._memory import NoiseMemory
from nni_robust.noise._plus import PlusEstimator
from nni_robust.noise._quality import Choice, NoiseQuality, choose_estimator, measure_quality
from nni_robust.noise._training import NOISE_ATTACK, EstimatorRecipe, EstimatorTrainer

__all__ = [
    "NOISE_ATTACK",
    "WSR_CONSTANTS",
    "BasicEstimator",
    "Choice",
    "EstimatorRecipe",
    "EstimatorTrainer",
    "InterpolateEstimator",
    "NoiseEstimator",
    "NoiseMemory",
    "NoiseQuality",
    "PlusEstimator",
    "ScaleEstimator",
    "choose_estimator",
    "estimate_adversarial",
    "estimators",
    "list_estimators",
    "make_estimator",
    "measure_quality",
    "target_norms",
]
