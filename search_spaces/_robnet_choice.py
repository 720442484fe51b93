"""The choice of an edge in NNI's three forms: undecided, one path, and a differentiable mixture."""

from __future__ import annotations

from typing import Any

import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import MutableModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from ._robnet_code import STATES
from ._robnet_layers import ConvSkip, Map, call_with

__all__ = ["DifferentiableEdge", "EdgeChoice", "SampledEdge"]


class EdgeChoice(MutableModule):
    """An edge of the undecided space; computes with both operations on.

    NNI's `LayerChoice` would need a module per state. Here the states share their operations, as in
    the paper, where an edge is the sum of its operations times their bits.

    Parameters
    ----------
    op
        The operations.
    choice
        Picks one of :data:`._robnet_code.STATES`; edges of different cells may have the same one.
    """

    def __init__(self, op: ConvSkip, choice: Categorical[str]) -> None:
        super().__init__()
        self.op = op
        self.choice = choice
        self.add_mutable(choice)

    def forward(self, x: Tensor, source: Map | None = None) -> Tensor | None:
        return call_with(self.op, x, source)

    def extra_repr(self) -> str:
        return f"label={str(self.choice.label)!r}"


class SampledEdge(EdgeChoice, BaseSuperNetModule):
    """An edge of a single-path supernet: computes the sampled state only (`RandomOneShot`)."""

    state: str | None = None

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> SampledEdge | None:
        """NNI's mutation hook: replaces an :class:`EdgeChoice`."""
        return cls(module.op, module.choice) if type(module) is EdgeChoice else None

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Take the state that `memo` has for this label, or else a random one."""
        known = self.choice.label in memo
        state: str = self.choice.freeze(memo) if known else self.choice.random()
        self.state = state
        return {self.choice.label: state}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """A random state, where `memo` has none."""
        return {} if self.choice.label in memo else {self.choice.label: self.choice.random()}

    def forward(self, x: Tensor, source: Map | None = None) -> Tensor | None:
        if self.state is None:
            raise RuntimeError("the supernet needs resample() before its first forward()")
        out: Tensor | None = self.op(x, self.state, source)
        return out


class DifferentiableEdge(EdgeChoice, BaseSuperNetModule):
    """An edge of a DARTS supernet: each operation times the probability that its bit is on.

    Parameters
    ----------
    op, choice
        See :class:`EdgeChoice`.
    alpha
        Four logits, in the order of the states.
    softmax
        NNI's softmax or Gumbel softmax over them.
    """

    def __init__(
        self, op: ConvSkip, choice: Categorical[str], alpha: nn.Parameter, softmax: nn.Module
    ) -> None:
        super().__init__(op, choice)
        self._arch_alpha = alpha
        self._softmax = softmax

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> DifferentiableEdge | None:
        """NNI's mutation hook: replaces an :class:`EdgeChoice`."""
        if type(module) is not EdgeChoice:
            return None
        alpha = memo[module.choice.label]
        return cls(module.op, module.choice, alpha, mutate_kwargs["softmax"])

    def arch_parameters(self) -> list[nn.Parameter]:
        """The logits, for NNI's architecture optimiser."""
        return [self._arch_alpha]

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing to draw."""
        return {}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """The most probable state, where `memo` has none."""
        label = self.choice.label
        return {} if label in memo else {label: STATES[int(self._arch_alpha.argmax())]}

    def export_probs(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Probability of each state, where `memo` has none."""
        label = self.choice.label
        if label in memo:
            return {}
        return {label: dict(zip(STATES, self._softmax(self._arch_alpha).tolist(), strict=True))}

    def forward(self, x: Tensor, source: Map | None = None) -> Tensor:
        _, conv, skip, both = torch.unbind(self._softmax(self._arch_alpha))
        kept = self.op(x, "skip", source)
        out: Tensor = (conv + both) * self.op(x, "conv", source) + (skip + both) * kept
        return out
