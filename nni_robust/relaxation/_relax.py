"""From a space to its relaxed form."""

from __future__ import annotations

from typing import Any

from nni_robust.relaxation._protocol import Relaxed

__all__ = ["relax"]


def relax(space: Any) -> Relaxed:
    """One network of all of a space's networks, differentiable in the weights of the choices.

    Its own ``relaxed()`` where the space has one. Any other NNI space of categorical choices
    (layers, inputs, repetitions, cells, widths and kernel sizes of convolutions) goes through NNI's
    differentiable supermodules, and is changed in place.

    Parameters
    ----------
    space
        A fresh NNI model space, not on the meta device.

    Raises
    ------
    UserError
        If the space cannot be relaxed, with the reason.
    """
    if hasattr(space, "relaxed"):
        result: Relaxed = space.relaxed()
        return result
    # NNI's supermodules take their time to import.
    from nni_robust.relaxation._nni import RelaxedSpace

    return RelaxedSpace(space)
