"""Threat models: what an attacker may do to a picture.

Pictures are floats in [0, 1], shape (N, C, H, W); eps is in the same pixel units, never in units of
a normalised input (several of the seeds got this wrong; normalisation is a layer of the model
here).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from nni_robust.config import Ratio, strict
from nni_robust.errors import UserError

__all__ = ["ThreatModel", "eps_label"]

Norm = Literal["linf", "l2"]


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """A ball of radius `eps` around each picture, cut to the box [0, 1].

    Parameters
    ----------
    norm
        ``"linf"`` (largest pixel change) or ``"l2"`` (Euclidean length of the change of one
        picture).
    eps
        Radius in pixel units. L∞: in [0, 1]. L2: finite and not negative. May be written
        ``"8/255"``.

    Raises
    ------
    UserError
        If `eps` is out of range.
    """

    norm: Norm = "linf"
    eps: Ratio = 8 / 255

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise UserError(f"threat.norm: {self.norm!r} is not allowed; allowed: linf, l2")
        if not isinstance(self.eps, (int, float)) or not math.isfinite(self.eps) or self.eps < 0:
            raise UserError(f"threat.eps: {self.eps!r} is not allowed; a finite number >= 0 is")
        if self.norm == "linf" and self.eps > 1:
            raise UserError(
                f"threat.eps: {self.eps!r} is not allowed for linf; pixels lie in [0, 1], so "
                "eps must too "
                f"(8/255 is {8 / 255:.4f})"
            )

    def __str__(self) -> str:
        return f"{self.norm} {eps_label(self.eps)}"


def eps_label(eps: float) -> str:
    """``"8/255"`` where eps is a whole number of 255ths, else a short decimal."""
    whole = eps * 255
    return f"{round(whole)}/255" if abs(whole - round(whole)) < 1e-6 and whole > 0.5 else f"{eps:g}"
