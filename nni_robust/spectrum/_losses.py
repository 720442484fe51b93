"""Worst losses at many strengths for a search: no early exit, few steps from strength to strength.

Wsr-NAS measures a candidate's loss at six strengths with PGD-7 for each. Here only the weakest
strength is attacked from the picture; each further one goes on from there with a few steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nni_robust.attacks import undisturbed
from nni_robust.attacks._base import check_pictures
from nni_robust.errors import UserError
from nni_robust.spectrum._climb import judge
from nni_robust.spectrum._passes import count_passes
from nni_robust.spectrum._rungs import Steps, make_rungs

__all__ = ["SpectrumLosses", "spectrum_losses"]


class SpectrumLosses(NamedTuple):
    """Cross entropy under attack at several strengths.

    Parameters
    ----------
    losses
        Cross entropy of each picture, (N,), at each eps, rising eps; it never falls with eps.
    adversarial
        The pictures behind it, (N, C, H, W), at each eps.
    passes
        Pictures that went forward and backward.
    """

    losses: dict[float, Tensor]
    adversarial: dict[float, Tensor]
    passes: int


def spectrum_losses(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps_values: Iterable[float | str],
    attack: str | Mapping[str, Any] = "pgd7",
    *,
    extra: int | None = 3,
    norm: Literal["linf", "l2"] = "linf",
    warm_start: bool = True,
    seed: int | None = 0,
    index: Tensor | None = None,
    batch_size: int = 256,
) -> SpectrumLosses:
    """Attack pictures at rising strengths and give their losses, whether they break or not.

    Parameters
    ----------
    model
        Network; it is attacked in evaluation mode and left exactly as it was.
    x
        (N, C, H, W), floats in [0, 1], on the network's device.
    y
        (N,), labels.
    eps_values
        Radii in pixel units, any order; 0 gives the clean loss.
    attack
        Name or mapping (see :func:`evaluate_spectrum`); its steps are those of the weakest
        strength above 0.
    extra
        Steps at each further strength, when it starts warm. None: as many as at the first.
    norm
        ``"linf"`` or ``"l2"``.
    warm_start
        False attacks each strength on its own with all the attack's steps.
    seed
        Of random starts; None draws them from torch's global generator.
    index
        (N,), int64, places of the pictures in the data; None numbers them from 0.
    batch_size
        Pictures in memory at a time; the result does not depend on it, up to rounding.

    Raises
    ------
    UserError
        On unusable pictures, strengths or attacks.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    y, largest = check_pictures(x, y)
    if extra is not None and (isinstance(extra, bool) or not isinstance(extra, int) or extra < 1):
        raise UserError(f"extra: {extra!r} is not allowed; a whole number >= 1 is")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size: {batch_size!r} is not allowed; a whole number >= 1 is")
    settings: dict[str, Any] = {"early_exit": False, "what": "spectrum_losses"}
    values = list(eps_values)
    cold = make_rungs(attack, values, norm, steps=None, warm_start=False, **settings)
    warm = cold
    if warm_start:
        follows: Steps = extra if all(_has_steps(rung.attack) for rung in cold) else None
        warm = make_rungs(attack, values, norm, steps=follows, warm_start=True, **settings)
    first = next((i for i, rung in enumerate(cold) if rung.eps > 0), len(cold))
    rungs = [*cold[: first + 1], *warm[first + 1 :]]
    places = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
    losses: dict[float, list[Tensor]] = {rung.eps: [] for rung in rungs}
    found: dict[float, list[Tensor]] = {rung.eps: [] for rung in rungs}
    with undisturbed(model), count_passes(model) as passes:
        for x_part, y_part, part in zip(
            *(torch.split(t, batch_size) for t in (x, y, places)), strict=True
        ):
            _, loss = judge(model, x_part, y_part, largest)
            adv, before = x_part.detach(), None
            for rung in rungs:
                if rung.eps > 0 and len(x_part):
                    new = rung.run(model, x_part, y_part, seed, part, before)
                    _, reached = judge(model, new, y_part)
                    better = reached >= loss
                    # The weaker attack's picture is allowed here too.
                    adv = torch.where(better.view(-1, 1, 1, 1), new, adv)
                    loss = torch.where(better, reached, loss)
                    before = (adv, rung.eps)
                losses[rung.eps].append(loss)
                found[rung.eps].append(adv)
    return SpectrumLosses(
        {eps: torch.cat(parts) for eps, parts in losses.items()},
        {eps: torch.cat(parts) for eps, parts in found.items()},
        passes.backward,
    )


def _has_steps(attack: Any) -> bool:
    return getattr(attack, "name", None) in ("pgd", "mi-fgsm")
