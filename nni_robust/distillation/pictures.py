"""Pictures of a search: a part for the weights, a part for the logits."""

from __future__ import annotations

import math

from nni_robust.data import Images
from nni_robust.data.seeding import stratified_order
from nni_robust.errors import UserError

__all__ = ["split_pictures"]


def split_pictures(pictures: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Pictures for the weights and pictures for the logits, without a common one.

    Parameters
    ----------
    pictures
        The training split.
    share
        Share of the second part; classes are in their shares in both.
    seed
        Of the split.

    Raises
    ------
    UserError
        If a part would be empty.
    """
    order = stratified_order(pictures.labels, seed, "logits split")
    cut = math.floor(len(order) * share + 0.5)
    if not 0 < cut < len(order):
        raise UserError(f"share: {share!r} of {len(order)} training pictures leaves a part empty")
    return pictures.take(order[cut:]), pictures.take(order[:cut])
