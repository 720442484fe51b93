"""Supernets: all networks of a space in one set of shared weights (single-path one-shot).

The supernet itself is NNI's: `RandomOneShot` turns any model space into one whose modules compute
only the sampled path. This module adds what a robust search needs around it: setting a given path,
and taking out one sub-network with the weights it inherits.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn

from nni_robust.errors import UserError
from nni_robust.nni_adapter.sharing import RandomOneShot, fill_cells
from nni_robust.sampling import Sample, draw

__all__ = ["PathSampler", "build_supernet", "inherit", "set_path"]


def build_supernet(space: Any) -> Any:
    """Turn a fresh model space into a supernet (in place, as NNI does) and return it.

    Raises
    ------
    UserError
        If the space has parts that NNI cannot share weights for.
    """
    try:
        return RandomOneShot().mutate_model(space)
    except (TypeError, ValueError) as e:
        raise UserError(f"space {type(space).__name__} cannot become a supernet: {e}") from e


def set_path(supernet: nn.Module, sample: Sample) -> None:
    """Make the supernet compute the sub-network of `sample`, and nothing else.

    Raises
    ------
    UserError
        If the sample lacks a choice of the supernet.
    """
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            for label in module.resample(dict(sample)):
                if label not in sample:
                    raise UserError(f"the sample has no value for '{label}'")


def inherit(supernet: Any, sample: Sample) -> nn.Module:
    """The sub-network of `sample` with a copy of the supernet's weights.

    Raises
    ------
    UserError
        If the space's ``freeze`` makes new weights, as NNI's manual suggests for spaces with
        choices of their own.
    """
    network: nn.Module = supernet.freeze(sample)
    if not _has_weights_of(network, supernet) and not fill_cells(network, supernet, sample):
        raise UserError(
            f"space {type(supernet).__name__} cannot hand over a supernet's weights: its freeze() "
            "makes a network with new ones"
        )
    # NNI's freeze copies modules that hold choices, and may hand others over as they are.
    own = {id(tensor) for tensor in supernet.state_dict(keep_vars=True).values()}
    if any(id(tensor) in own for tensor in network.state_dict(keep_vars=True).values()):
        network = copy.deepcopy(network)
    return network


def _has_weights_of(network: nn.Module, supernet: nn.Module) -> bool:
    """Whether any weight is the supernet's of that name; True where no two can be compared."""
    shared = supernet.state_dict()
    compared = False
    for name, tensor in network.state_dict().items():
        other = shared.get(name)
        if other is None or other.shape != tensor.shape or other.is_meta or tensor.numel() < 2:
            continue
        if bool((tensor == tensor.flatten()[0]).all()):
            continue  # zeros and ones are the same in every new network
        if torch.equal(tensor, other):
            return True
        compared = True
    return not compared


class PathSampler:
    """Training hook: before each batch the supernet takes a random path.

    The batch is then attacked and trained as that path (RobNet, section 3.2, algorithm 1): weights
    of other paths get no gradient, and so neither momentum nor weight decay moves them.

    Parameters
    ----------
    mutables
        The space's ``simplify()``, taken before it became a supernet.
    uniform
        Leave the priors of the choices out, see :func:`nni_robust.sampling.draw`.
    """

    def __init__(self, mutables: Any, uniform: bool = False) -> None:
        self.mutables, self.uniform = mutables, uniform

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        """Draw a path with `generator`, which the training loop seeds for every batch."""
        import numpy as np

        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        rng = np.random.RandomState(seed)
        set_path(model, draw(self.mutables, rng, uniform=self.uniform))
