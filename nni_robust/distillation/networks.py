"""What a search for tutors does to networks besides training them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Unrelaxed", "frozen_weights"]


class Unrelaxed:
    """A plain network in the place of a relaxed one: only tutors are searched."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.choices: Mapping[str, Sequence[Any]] = {}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Nothing to set."""

    def cost(self, weights: Mapping[str, Tensor], input_shape: Sequence[int]) -> dict[str, Tensor]:
        """Nothing that a choice could change."""
        return {}

    def sample(self, weights_or_logits: Mapping[str, Tensor]) -> dict[str, Any]:
        """No choices."""
        return {}

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        """The network itself."""
        return self.network


class frozen_weights:
    """Weights get no gradient, and norms keep their running statistics, while the logits learn."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __enter__(self) -> None:
        self.grads = [(p, p.requires_grad) for p in self.network.parameters()]
        self.norms = [
            (m, m.momentum)
            for m in self.network.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ]
        for parameter, _ in self.grads:
            parameter.requires_grad_(False)
        for norm, _ in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: Any) -> None:
        for parameter, requires in self.grads:
            parameter.requires_grad_(requires)
        for norm, momentum in self.norms:
            norm.momentum = momentum
