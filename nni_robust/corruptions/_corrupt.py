"""Corrupt a batch of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from nni_robust.corruptions import blur, digital, noise, weather
from nni_robust.corruptions._draws import Draws
from nni_robust.corruptions._parameters import EXTRA, PARAMETERS, STANDARD, Scale
from nni_robust.errors import UserError, nearest

__all__ = ["SEVERITIES", "corrupt", "names_of", "scale_of"]

#: All severities, the mildest first.
SEVERITIES = (1, 2, 3, 4, 5)
# The larger side up to which pictures have the strengths of CIFAR's.
_SMALL = 64

_FUNCTIONS: Mapping[str, Callable[[Tensor, Any, Draws], Tensor]] = {
    name: next(
        getattr(module, name) for module in (noise, blur, weather, digital) if hasattr(module, name)
    )
    for name in PARAMETERS
}


def names_of(corruptions: str | Iterable[str]) -> tuple[str, ...]:
    """The corruptions that somebody means.

    Parameters
    ----------
    corruptions
        ``"standard"`` (the fifteen), ``"all"``, one name or several; a dash is an underscore. Each
        also as a list of one.

    Raises
    ------
    UserError
        On an unknown name, one named twice, or none.
    """
    given = (corruptions,) if isinstance(corruptions, str) else tuple(corruptions)
    if given == ("standard",):
        return STANDARD
    if given == ("all",):
        return STANDARD + EXTRA
    found = tuple(str(name).strip().replace("-", "_") for name in given)
    for name in found:
        if name not in PARAMETERS:
            raise UserError(
                f"corruptions: unknown '{name}'{nearest(name, PARAMETERS)}; known: "
                f"{', '.join(PARAMETERS)}, or standard, or all"
            )
    if not found or len(set(found)) < len(found):
        raise UserError(f"corruptions: {list(found)!r} is not allowed; each once, and at least one")
    return found


def scale_of(shape: Iterable[int], scale: Scale | Literal["auto"] = "auto") -> Scale:
    """Whose strengths pictures of a shape (…, H, W) get: up to 64×64 those of CIFAR-10-C.

    Raises
    ------
    UserError
        If `scale` is something else.
    """
    if scale == "auto":
        return "cifar" if max(tuple(shape)[-2:]) <= _SMALL else "imagenet"
    if scale not in ("cifar", "imagenet"):
        raise UserError(f"scale: {scale!r} is not allowed; auto, cifar or imagenet is")
    return scale


@torch.no_grad()
def corrupt(
    x: Tensor,
    corruption: str,
    severity: int,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    scale: Scale | Literal["auto"] = "auto",
) -> Tensor:
    """Corrupt pictures; what happens to one depends on it, its index, seed, name and severity only.

    Parameters
    ----------
    x
        (N, C, H, W), any float type, in [0, 1].
    corruption
        One of :data:`STANDARD` and :data:`EXTRA`.
    severity
        1 to 5; 0 gives the pictures back.
    seed
        Of everything random.
    index
        (N,), int64: places of the pictures in the data; None counts from 0.
    scale
        ``"cifar"`` or ``"imagenet"``: whose strengths; ``"auto"`` goes by the size.

    Returns
    -------
    Tensor
        Like `x`, in [0, 1]; not rounded to bytes (except by JPEG).

    Raises
    ------
    UserError
        On an unknown corruption or severity, or pictures of a wrong shape.
    """
    (name,) = names_of((corruption,))
    if isinstance(severity, bool) or severity not in (0, *SEVERITIES):
        raise UserError(f"severity: {severity!r} is not allowed; a whole number from 0 to 5 is")
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        raise UserError("x must be a float tensor of shape (N, C, H, W)")
    strength = scale_of(x.shape, scale)
    if severity == 0 or len(x) == 0:
        return x.clone()
    place = torch.arange(len(x)) if index is None else index
    draws = Draws(seed, name, severity, place.to(x.device, torch.int64))
    found = _FUNCTIONS[name](x.float(), PARAMETERS[name][strength][severity - 1], draws)
    return found.clamp(0, 1).to(x.dtype)
