"""NNI exploration strategies: how a space is searched."""

from __future__ import annotations

from .robust_one_shot import RobustOneShot
from .wide_spectrum import WideSpectrumSearch

__all__ = ["RobustOneShot", "WideSpectrumSearch"]
