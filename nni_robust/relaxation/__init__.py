"""Spaces as networks that are differentiable in the weights of their choices."""

from __future__ import annotations

from nni_robust.relaxation._draw import (
    SharedDraw,
    check_weights,
    gumbel_weights,
    most_likely,
    one_hot,
    start_logits,
    temperature,
)
from nni_robust.relaxation._protocol import Relaxed
from nni_robust.relaxation._relax import relax

__all__ = [
    "Relaxed",
    "SharedDraw",
    "check_weights",
    "gumbel_weights",
    "most_likely",
    "one_hot",
    "relax",
    "start_logits",
    "temperature",
]
