"""Search spaces: NNI model spaces of robust networks (what can be built)."""

from __future__ import annotations

from .robnet import RobNet, RobNetSpace

__all__ = ["RobNet", "RobNetSpace"]
