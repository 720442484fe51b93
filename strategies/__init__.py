"""NNI exploration strategies: how a space is searched."""

from __future__ import annotations

from .cross_layer_distillation import CrossLayerDistillation
from .rl_compressor import RLCompressor
from .robust_one_shot import RobustOneShot
from .wide_spectrum import WideSpectrumSearch

__all__ = ["CrossLayerDistillation", "RLCompressor", "RobustOneShot", "WideSpectrumSearch"]
