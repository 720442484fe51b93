"""What the search spaces share: checks of arguments, and inheriting weights from a supernet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from nni_robust.errors import UserError

__all__ = ["at_least", "inherit_weights"]

Network = TypeVar("Network", bound=nn.Module)


def at_least(name: str, value: object, minimum: int) -> None:
    """Check that `value` is an integer of at least `minimum`.

    Raises
    ------
    UserError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{name}: {value!r} is not allowed; an integer of at least {minimum} is")


def inherit_weights(
    build: Callable[[], Network], supernet: nn.Module, source: Callable[[str], str]
) -> Network:
    """Build a network that has copies of a supernet's weights, and its train/eval flag.

    Parameters
    ----------
    build
        Makes the network; called so that no weights are allocated or drawn only to be overwritten.
    supernet
        Where the weights come from. If it has none (it was made on the meta device), the network is
        built with fresh weights instead.
    source
        Name in the supernet's state dict of an entry of the network's.
    """
    state = supernet.state_dict(keep_vars=False)
    if any(tensor.is_meta for tensor in state.values()):
        return build().train(supernet.training)
    with torch.device("meta"):
        network = build()
    own = {name: state[source(name)].clone() for name in network.state_dict()}
    network.load_state_dict(own, strict=True, assign=True)
    return network.train(supernet.training)
