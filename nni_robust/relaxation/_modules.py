"""Supermodules that compute with the shared weights, where NNI's own do something else.

What is named upstream refers to nni 3.0, ``nni/nas/oneshot/pytorch/supermodule``.
"""

from __future__ import annotations

from typing import Any

import torch
from nni.nas.nn.pytorch.cell import preprocess_cell_inputs
from nni.nas.oneshot.pytorch.supermodule.operation import (
    MixedBatchNorm2d,
    MixedConv2d,
    MixedLinear,
)
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell
from torch import Tensor, nn

from nni_robust.nni_adapter.sharing import SlicedOperation
from nni_robust.relaxation._draw import SharedDraw

__all__ = ["DrawnWeights", "MaskedBatchNorm2d", "MaskedConv2d", "MaskedLinear", "MixedCell"]


class DrawnWeights(nn.Module):
    """Takes the place of NNI's softmax over logits: gives the current weights of their choice.

    NNI's supermodules hold a parameter for each choice and call a softmax on it. Here these
    parameters are mere tags, by which the choice is found, and never trained.

    Parameters
    ----------
    draw
        Holds the weights.
    """

    def __init__(self, draw: SharedDraw) -> None:
        super().__init__()
        self.draw = draw
        # Not registered as parameters. A list, so that it still fits after a deep copy.
        self._tags = [
            (label, nn.Parameter(torch.zeros(len(values)), requires_grad=False))
            for label, values in draw.choices.items()
        ]

    def tags(self) -> dict[str, nn.Parameter]:
        """A parameter for every label."""
        return dict(self._tags)

    def forward(self, tag: Tensor) -> Tensor:
        label = next(label for label, own in self._tags if own is tag)
        return self.draw.weights[label].to(tag)


class MaskedConv2d(SlicedOperation, MixedConv2d):
    """A convolution whose weights are multiplied by masks of channels and kernel sizes."""


class MaskedLinear(SlicedOperation, MixedLinear):
    """A linear layer whose weights are multiplied by masks of features."""


class MaskedBatchNorm2d(SlicedOperation, MixedBatchNorm2d):
    """A batch norm with a searched width that masks channels behind the norm.

    NNI's `MixedBatchNorm2d` normalises at the largest width, and so undoes the mask on the weights
    of the convolution before it: its docstring calls this "the maximum ``num_features`` is used".
    """

    def forward_with_args(
        self, num_features: Any, eps: float, momentum: float, inputs: Tensor
    ) -> Tensor:
        out: Tensor = super().forward_with_args(num_features, eps, momentum, inputs)
        if not isinstance(num_features, dict):
            return out
        channels = torch.arange(out.shape[1], device=out.device)
        mask = sum((channels < width).to(out) * weight for width, weight in num_features.items())
        return out * torch.as_tensor(mask)[:, None, None]


class MixedCell(PathSamplingCell):
    """A cell that mixes operations and inputs by the weights of the space's own choices.

    Each node adds up ``num_ops_per_node`` pairs of an input and an operation; a mixed pair is the
    sum of all operations on all inputs, times both weights. NNI's `DifferentiableMixedCell` has
    weights of its own for every edge instead, which are not those of the space's choices and keep
    the strongest edges only at the end: costs and samples would not be those of the mixture.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        memo, kwargs = args[-3], args[-2]
        self._softmax = kwargs["softmax"]
        self._tags = nn.ParameterDict({label: memo[label] for label in self.simplify()})

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing to draw here."""
        return {}

    def forward(self, *inputs: Any) -> Any:
        processed = preprocess_cell_inputs(self.num_predecessors, *inputs)
        states: list[Tensor] = list(self.preprocessor(processed))
        for node, sources in enumerate(self.ops, start=self.num_predecessors):
            pairs = [
                torch.outer(self._weights(f"input_{node}_{k}"), self._weights(f"op_{node}_{k}"))
                for k in range(self.num_ops_per_node)
            ]
            weights = torch.stack(pairs).sum(0)  # by input and operation
            mixed = [
                weight * operation(state)
                for state, row, operations in zip(states, weights, sources, strict=True)
                for weight, operation in zip(row, operations.values(), strict=True)
            ]
            states.append(torch.stack(mixed).sum(0))
        return self.postprocessor(
            torch.cat(states[self.num_predecessors :], self.concat_dim), processed
        )

    def _weights(self, name: str) -> Tensor:
        weights: Tensor = self._softmax(self._tags[f"{self.label}/{name}"])
        return weights
