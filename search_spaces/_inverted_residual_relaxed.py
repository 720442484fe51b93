"""The inverted-residual space as one network, differentiable in the weights of its widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nni_robust.relaxation import SharedDraw, check_weights, most_likely

from ._inverted_residual_config import InvertedResidualConfig
from ._inverted_residual_cost import Width, network_cost, released_cost
from ._inverted_residual_network import InvertedResidualNet, masked

__all__ = ["RelaxedInvertedResidual"]


class RelaxedInvertedResidual:
    """:class:`nni_robust.relaxation.Relaxed` of an `InvertedResidualSpace`, see there.

    The network has all channels. With weights g over the widths c of a block, channel number i of
    the block's output is multiplied by the sum of the g of all widths above i, behind norm and
    shortcut; so are the inner channels of the next block that a narrower network would lack.

    Parameters
    ----------
    config
        The space's networks.
    freeze
        Makes a sample's plain network out of this one.
    legacy_cost
        See `InvertedResidualSpace.relaxed`.
    """

    network: InvertedResidualNet
    choices: Mapping[str, Sequence[Any]]

    def __init__(
        self,
        config: InvertedResidualConfig,
        freeze: Callable[[Mapping[str, Any], InvertedResidualNet], InvertedResidualNet],
        legacy_cost: bool = False,
    ) -> None:
        self.config, self.legacy_cost = config, legacy_cost
        self._freeze = freeze
        self.choices = {label: list(widths) for label, widths in config.choices().items()}
        self._draw = SharedDraw(self.choices)
        self.network = masked(config, self._draw)

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`nni_robust.relaxation.Relaxed.set_weights`."""
        self._draw.set(weights)

    def cost(
        self, weights: Mapping[str, Tensor], input_shape: Sequence[int] = (3, 32, 32)
    ) -> dict[str, Tensor]:
        """Expected cost of a network whose widths are drawn with these weights, in closed form.

        See :meth:`nni_robust.relaxation.Relaxed.cost`. An expectation of the square of a width is
        taken where a block's input width sets its inner width too; FBNetV2, and the released code,
        square the expected width. The two agree where the weights are 0 or 1.
        """
        widths: dict[str, Width] = {}
        for label, w in check_weights(self.choices, weights).items():
            values = torch.tensor(self.choices[label], dtype=torch.float64, device=w.device)
            mean, exact = w.double() @ values, w.double() @ values**2
            widths[label] = Width(mean, mean**2 if self.legacy_cost else exact)
        params, macs = network_cost(self.config, widths, input_shape)
        if self.legacy_cost:
            macs = released_cost(self.config, widths, input_shape)
        return {"macs": macs, "params": params}

    def sample(self, weights_or_logits: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :meth:`nni_robust.relaxation.Relaxed.sample`; among equals the widest."""
        return most_likely(self.choices, weights_or_logits)

    def freeze(self, sample: Mapping[str, Any]) -> InvertedResidualNet:
        """The sample's plain network with this network's weights, first channels kept.

        In eval mode it computes what this network computes with the sample's weights set to 1.
        """
        return self._freeze(sample, self.network)
