"""What a strategy that searches by gradient asks of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from nni_robust.sampling import Sample

__all__ = ["Relaxed"]


@runtime_checkable
class Relaxed(Protocol):
    """A space as one network that is differentiable in the weights of its choices.

    Attributes
    ----------
    network
        Computes with the current weights of the choices; equal weights at first. Its parameters
        are those to be trained as a network's; the choices' logits are the strategy's own.
    choices
        Label to its values, in the order of the weights.
    """

    network: nn.Module
    choices: Mapping[str, Sequence[Any]]

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Use these weights, label to (k,), in all forwards until the next call.

        Raises
        ------
        UserError
            If a label is unknown or missing, or the number of weights is another.
        """

    def cost(self, weights: Mapping[str, Tensor], input_shape: Sequence[int]) -> dict[str, Tensor]:
        """``macs`` (for one picture) and ``params``: scalars, float64, differentiable.

        Exactly the sample's cost where all weights are 0 or 1.
        """

    def sample(self, weights_or_logits: Mapping[str, Tensor]) -> Sample:
        """The sample with the largest weight in every choice."""

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        """The plain network of a sample, with copies of the relaxed network's weights.

        Raises
        ------
        UserError
            If the space has no way to hand over weights.
        """
