"""FSP distances and accuracies of one network, as the records of a study hold them.

RobNet (Guo et al., CVPR 2020, arXiv 1911.10695), section 3.5: both are measured on the same
weights, those that a candidate inherits, before any fine-tuning. The paper names neither the attack
nor the pictures; here the attack is that of the training.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from nni_robust.analysis.fsp import fsp_distance, fsp_taps
from nni_robust.attacks import attack_from_spec, undisturbed
from nni_robust.data.images import Images
from nni_robust.data.seeding import derive_seed
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe

__all__ = ["fsp_record"]


def fsp_record(
    model: nn.Module,
    images: Images,
    recipe: Recipe,
    threat: ThreatModel,
    *,
    pictures: int = 1000,
    reduce: Literal["mean", "sum"] = "mean",
    seed: int = 0,
    batch_size: int = 128,
) -> dict[str, Any]:
    """Measure a network with the attack of its training.

    Parameters
    ----------
    model
        Network with a list of modules ``cells``; it is left as it was.
    images
        The search-validation pictures.
    recipe
        Its ``attack`` makes the attacked pictures.
    threat
        Ball of the attack.
    pictures
        How many of `images`, the first ones, so that all candidates see the same.
    reduce
        See :func:`nni_robust.analysis.fsp_distance`.
    seed
        Of the attack's random starts.
    batch_size
        Pictures in memory at a time.

    Returns
    -------
    dict
        ``"distance"``: one number per cell, first cell first; ``"clean"`` and ``"robust"``:
        accuracies in [0, 1] on the same pictures; ``"pictures"``: how many these were.

    Raises
    ------
    UserError
        If the network has no cells, or a setting is out of range.
    ValueError
        If feature maps are not finite.
    """
    if pictures < 1:
        raise UserError(f"pictures: {pictures!r} is not allowed; at least 1 is")
    taps = fsp_taps(model)
    exact = dataclasses.replace(recipe.attack, fold=False)
    attack = attack_from_spec({"name": "pgd", **dataclasses.asdict(exact)}, threat)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    totals, right = [0.0] * len(taps), [0, 0]
    chosen = images.head(pictures)
    for number, (x, y) in enumerate(chosen.batches(batch_size, device=device)):
        x_adv = attack(model, x, y, seed=derive_seed(seed, "fsp", number))
        found = fsp_distance(model, x, x_adv, cells=taps, reduce=reduce)
        totals = [total + len(x) * value for total, value in zip(totals, found, strict=True)]
        with undisturbed(model), torch.no_grad():
            for k, batch in enumerate((x, x_adv)):
                right[k] += int((model(batch).argmax(dim=1) == y).sum())
    n = len(chosen)
    return {
        "distance": [total / n for total in totals],
        "clean": right[0] / n,
        "robust": right[1] / n,
        "pictures": n,
    }
