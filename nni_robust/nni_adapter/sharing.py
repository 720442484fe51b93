"""NNI's weight sharing for layers without a bias, and for the cells of its hub.

In NNI 3.0 the plain layer that is cut out of a supernet's layer gets slices of all weights, also of
those that it does not have: ``MixedOperation.freeze`` ends in ``RuntimeError: Unexpected key(s) in
state_dict: "bias"`` at every convolution in front of a norm, such as those of MobileNetV3,
ProxylessNAS and ShuffleNet in NNI's own hub. No issue upstream is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nni.nas.oneshot.pytorch.supermodule.operation import (
    NATIVE_MIXED_OPERATIONS,
    MixedOperation,
)
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell
from nni.nas.strategy import RandomOneShot as NniRandomOneShot
from torch import nn

__all__ = ["RandomOneShot", "SlicedOperation", "fill_cells"]


class SlicedOperation(MixedOperation):
    """Hands over the weights that it has."""

    init_arguments: dict[str, Any]  # NNI ships no types
    mutable_arguments: dict[str, Any]

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        chosen = {name: value.freeze(sample) for name, value in self.mutable_arguments.items()}
        arguments = {**self.init_arguments, **chosen}
        operation: nn.Module = self.bound_type(**arguments)
        state = self.freeze_weight(**arguments)
        operation.load_state_dict({name: w for name, w in state.items() if w is not None})
        return operation.train(self.training)


_SLICED: dict[Any, Any] = {
    operation: type(operation.__name__, (SlicedOperation, operation), {})
    for operation in NATIVE_MIXED_OPERATIONS
}


class RandomOneShot(NniRandomOneShot):
    """NNI's, with layers that can be taken out also where they have no bias."""

    def default_mutation_hooks(self) -> list[Callable[..., Any]]:
        hooks: list[Any] = super().default_mutation_hooks()
        return [
            _SLICED[owner].mutate if (owner := getattr(hook, "__self__", None)) in _SLICED else hook
            for hook in hooks
        ]


def fill_cells(network: nn.Module, supernet: nn.Module, sample: dict[str, Any]) -> bool:
    """Give a network of NNI's hub, such as DARTS, the weights of the supernet that it is a part of.

    ``NDS.freeze`` of the hub makes a new network with new weights, and ``PathSamplingCell`` cannot
    be frozen at all, so that nothing would be inherited, and nobody told.

    Returns
    -------
    Whether all weights were found, in the right shape.
    """
    weights = supernet.state_dict()
    cells = {n: m for n, m in supernet.named_modules() if isinstance(m, PathSamplingCell)}
    own = {}
    for name, tensor in network.state_dict().items():
        stage, cell, rest = (*re.split(r"(?<=^stages\.\d)\.(\d+)\.", name), "", "")[:3]
        source = f"{stage}.blocks.{cell}" if cell else name
        if cell:
            part = rest.split(".")
            if part[0] == "ops" and source in cells:
                node, edge = int(part[1]) + cells[source].num_predecessors, part[2]
                label = cells[source].label
                state = sample[f"{label}/input_{node}_{edge}"][0]
                part[2:3] = [str(state), str(sample[f"{label}/op_{node}_{edge}"])]
            source = ".".join([source, *part])
        if source not in weights or weights[source].shape != tensor.shape:
            return False
        own[name] = weights[source].clone()
    network.load_state_dict(own)
    network.train(supernet.training)
    return True
