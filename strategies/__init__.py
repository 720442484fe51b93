"""NNI exploration strategies: how a space is searched."""

from __future__ import annotations

from .cross_layer_distillation import CrossLayerDistillation
from .robust_one_shot import RobustOneShot
from .wide_spectrum import WideSpectrumSearch

__all__ = ["CrossLayerDistillation", "RobustOneShot", "WideSpectrumSearch"]
