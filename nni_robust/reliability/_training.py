"""Whether a training ended with a network that resists nothing but the training's own attack.

"Catastrophic overfitting" (Wong et al., 2001.03994, section 5.3): within an epoch accuracy under
the training's one step jumps up while accuracy under PGD falls to nothing. The loss ``fast`` stops
there by itself (:mod:`nni_robust.training._collapse`); this reads it off any training's curve, at
no cost. It is not the slow overfitting of robust accuracy, which PGD still measures rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nni_robust.reliability._checks import Check, failed, not_run, passed

__all__ = ["check_training"]

# Of its best robust validation accuracy a collapsed network keeps less than this share, and has
# lost at least this much; its training accuracy is above that of the best epoch.
_KEPT, _LOST = 0.5, 0.1


def check_training(history: Sequence[Mapping[str, Any]], num_classes: int) -> Check:
    """Read the check off the records of a training's epochs.

    Parameters
    ----------
    history
        Records as of :class:`nni_robust.training.EpochRecord`: ``train_robust`` (under the
        training's attack) and ``val_robust`` (under the validation's), in [0, 1].
    num_classes
        Classes of the data.
    """
    from nni_robust.training._collapse import collapsed

    points = [
        (float(r["train_robust"]), float(r["val_robust"]))
        for r in history
        if r.get("train_robust") is not None and r.get("val_robust") is not None
    ]
    if not points:
        why = "no training" if not history else "no robust accuracy was measured during training"
        return not_run("training-collapse", why)
    one, many = points[-1]
    best_one, best = max(points, key=lambda point: point[1])
    fell = many <= _KEPT * best and best - many >= _LOST and one >= best_one
    figures = {"train_robust": one, "val_robust": many, "best_val_robust": best}
    if not fell and not collapsed(one, many, num_classes):
        return passed("training-collapse", **figures)
    reason = (
        f"the training collapsed: at its end accuracy is {one:.0%} under its own attack, but "
        f"{many:.0%} under the validation's (best {best:.0%}): figures under attacks like the "
        "training's mean nothing"
    )
    return failed("training-collapse", reason, **figures)
