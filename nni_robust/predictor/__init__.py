"""Predicting the losses of architectures, and moving architecture weights by the prediction."""

from __future__ import annotations

from .alphas import AlphaSettings, ArchitectureLogits
from .encoding import EdgeEncoding, Encoding, LabelEncoding, make_encoding
from .fit import PredictorFit, rank_agreement
from .linear import LinearPredictor
from .lstm import LossPredictor, PredictorSettings
from .replay import ReplayMemory

__all__ = [
    "AlphaSettings",
    "ArchitectureLogits",
    "EdgeEncoding",
    "Encoding",
    "LabelEncoding",
    "LinearPredictor",
    "LossPredictor",
    "PredictorFit",
    "PredictorSettings",
    "ReplayMemory",
    "make_encoding",
    "rank_agreement",
]
