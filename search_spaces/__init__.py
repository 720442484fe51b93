"""Search spaces: NNI model spaces of robust networks (what can be built)."""

from __future__ import annotations

from .baseline import BaselineSpace
from .darts import DartsNetwork, DartsSpace, Genotype, canonical_form, isomorphic
from .inverted_residual import InvertedResidualNet, InvertedResidualSpace
from .robnet import RobNet, RobNetSpace
from .wide_resnet import WideResNet, WideResNetConfig, WideResNetSpace

__all__ = [
    "BaselineSpace",
    "DartsNetwork",
    "DartsSpace",
    "Genotype",
    "InvertedResidualNet",
    "InvertedResidualSpace",
    "RobNet",
    "RobNetSpace",
    "WideResNet",
    "WideResNetConfig",
    "WideResNetSpace",
    "canonical_form",
    "isomorphic",
]
