"""Local Lipschitz value: how far the outputs move for what an attack changed in the pictures.

Fact: the evaluation script of zhichao-lu/robust-residual-network (commit 8c6d2c2, also in the
RC-NAS repository) prints the mean over pictures of ``|f(x) - f(x')|_1 / |x - x' + 1e-6|_inf``, f
the logits and x' the attacked picture. That RC-NAS's figure of topologies prints the same quantity
is likely, not known.

Here the 1e-6 is left out, and so are pictures that the attack did not change: they say nothing
about the network, and count as 0 there (``legacy=True``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nni_robust._pictures import as_threat, batches
from nni_robust.attacks import AttackSpec, attack_from_spec, undisturbed
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nni_robust.threat import ThreatModel

__all__ = ["lipschitz_value", "local_lipschitz"]


def local_lipschitz(model: nn.Module, x: Tensor, x_adv: Tensor, *, legacy: bool = False) -> float:
    """Mean of ``|f(x) - f(x_adv)|_1 / |x - x_adv|_inf`` over the pictures that differ.

    Parameters
    ----------
    model
        Network f from pictures to logits; asked in evaluation mode, and left exactly as it was.
    x, x_adv
        Pictures (N, C, H, W) in [0, 1], clean and attacked, on the network's device.
    legacy
        Compute the repository's formula, for comparisons with its figures.

    Returns
    -------
    float
        Sum of the changes of all logits per pixel unit; it grows with the number of classes. 0.0
        where no picture differs.

    Raises
    ------
    UserError
        If the two have different shapes.
    """
    total, count = _ratios(model, x, x_adv, legacy)
    return total / count if count else 0.0


def lipschitz_value(
    model: nn.Module,
    data: Any,
    attack: AttackSpec = "pgd20",
    *,
    threat: ThreatModel | Mapping[str, Any] | None = None,
    limit: int | None = 256,
    batch_size: int = 128,
    seed: int = 0,
    legacy: bool = False,
) -> float:
    """:func:`local_lipschitz` of a network under an attack; the network is left as it was.

    Parameters
    ----------
    model
        The network; its first parameter says where pictures go.
    data
        As for :func:`nni_robust.evaluation.evaluate`. All pictures count, also misclassified ones.
    attack
        What :func:`~nni_robust.attacks.attack_from_spec` understands.
    threat
        Ball of the attack; None is L∞ 8/255.
    limit
        Use the first so many pictures; None is all.
    batch_size
        Pictures at a time.
    seed
        Of random starts.
    legacy
        See :func:`local_lipschitz`.

    Raises
    ------
    UserError
        On an unknown attack or unusable data.
    """
    made = attack_from_spec(attack, as_threat(threat))
    total, count = 0.0, 0
    for batch in batches(model, data, batch_size, None, limit):
        places = torch.arange(len(batch.y), device=batch.y.device) + batch.first
        x_adv = made(model, batch.x, batch.y, seed=seed, index=places)
        more, pictures = _ratios(model, batch.x, x_adv, legacy)
        total, count = total + more, count + pictures
    return total / count if count else 0.0


def _ratios(model: nn.Module, x: Tensor, x_adv: Tensor, legacy: bool) -> tuple[float, int]:
    """Sum of the ratios, and how many pictures count."""
    if x.shape != x_adv.shape or x.dim() < 2:
        raise UserError(
            f"local_lipschitz: x and x_adv have shapes {tuple(x.shape)} and {tuple(x_adv.shape)}; "
            "two batches of the same shape are needed"
        )
    difference = x.double() - x_adv.double() + (1e-6 if legacy else 0.0)
    change = difference.abs().flatten(1).amax(1)
    rows = change > 0
    if not bool(rows.any()):
        return 0.0, 0
    with torch.no_grad(), undisturbed(model):
        moved = model(x[rows]).double() - model(x_adv[rows]).double()
    ratios = moved.abs().flatten(1).sum(1) / change[rows]
    return float(ratios.sum()), int(rows.sum())
