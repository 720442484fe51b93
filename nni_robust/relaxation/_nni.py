"""Any NNI space of categorical choices as one differentiable network, by NNI's supermodules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nni.mutable import Categorical, MutableAnnotation
from nni.mutable.mutable import CategoricalMultiple
from nni.nas.oneshot.pytorch.supermodule.differentiable import (
    DifferentiableMixedInput,
    DifferentiableMixedLayer,
    DifferentiableMixedRepeat,
)
from nni.nas.oneshot.pytorch.supermodule.operation import NATIVE_MIXED_OPERATIONS
from nni.nas.strategy import DARTS
from torch import Tensor, nn

from nni_robust.errors import UserError
from nni_robust.relaxation._cost import ExpectedCost, Measured
from nni_robust.relaxation._draw import SharedDraw, check_weights, most_likely
from nni_robust.relaxation._modules import (
    DrawnWeights,
    MaskedBatchNorm2d,
    MaskedConv2d,
    MaskedLinear,
    MixedCell,
)

__all__ = ["RelaxedSpace"]


class RelaxedSpace:
    """:class:`.Relaxed` for a space that has no ``relaxed()`` of its own.

    The space itself becomes the network, in place, as NNI's one-shot strategies do it.

    Parameters
    ----------
    space
        A fresh model space.

    Raises
    ------
    UserError
        If a choice is not categorical, or NNI has no differentiable form of a module.
    """

    network: nn.Module
    choices: Mapping[str, Sequence[Any]]

    def __init__(self, space: Any) -> None:
        self.choices = _choices(space)
        self._draw = SharedDraw(self.choices)
        # What is measured are networks of the space, not of the supernet.
        counted = space if hasattr(space, "cost") else Measured(copy.deepcopy(space))
        self._cost = ExpectedCost(counted, self.choices)
        try:
            self.network = Relaxation(self._draw).mutate_model(space)
        except (TypeError, ValueError, KeyError) as e:  # among them a space's own UserError
            raise UserError(f"space {type(space).__name__} cannot be relaxed: {e}") from e

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`.Relaxed.set_weights`."""
        self._draw.set(weights)

    def cost(self, weights: Mapping[str, Tensor], input_shape: Sequence[int]) -> dict[str, Tensor]:
        """See :meth:`.Relaxed.cost`, and :class:`.ExpectedCost` for weights in between.

        Networks of a space without a ``cost`` are measured.
        """
        return self._cost(check_weights(self.choices, weights), tuple(input_shape))

    def sample(self, weights_or_logits: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :meth:`.Relaxed.sample`."""
        return most_likely(self.choices, weights_or_logits)

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        """See :meth:`.Relaxed.freeze`."""
        network: Any = self.network
        try:
            frozen: nn.Module = network.freeze(dict(sample))
        except NotImplementedError as e:
            raise UserError(
                f"space {type(network).__name__} cannot hand over its relaxed weights: {e}"
            ) from e
        return frozen


class Relaxation(DARTS):
    """NNI's DARTS, of which only the making of the supernet is used.

    Parameters
    ----------
    draw
        Gives the weights, in place of NNI's logits and softmax.
    """

    def __init__(self, draw: SharedDraw) -> None:
        super().__init__()
        self._drawn = DrawnWeights(draw)

    def configure_softmax(self) -> nn.Module:
        return self._drawn

    def default_mutation_hooks(self) -> list[Callable[..., Any]]:
        # Of NNI's operations with searched arguments, those that compute what the sliced operation
        # computes where one weight is 1. Layer norm and attention do not.
        return [
            _keep_layer,
            DifferentiableMixedLayer.mutate,
            DifferentiableMixedInput.mutate,
            MixedCell.mutate,
            DifferentiableMixedRepeat.mutate,
            MaskedBatchNorm2d.mutate,
            MaskedConv2d.mutate,
            MaskedLinear.mutate,
            super().default_mutation_hooks()[-1],  # refuses what is left
        ]

    def mutate_model(self, model: Any) -> Any:
        self._arch_parameters = self._drawn.tags()
        # Past DARTS's own, which would make parameters.
        return super(DARTS, self).mutate_model(model)


_LAYERS = tuple(operation.bound_type for operation in NATIVE_MIXED_OPERATIONS)


def _keep_layer(module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]) -> bool:
    """NNI's mutation hook: layers without a choice stay as they are."""
    return isinstance(module, _LAYERS) and not module.mutables


def _choices(space: Any) -> dict[str, list[Any]]:
    """Values of every choice, as they stand in a sample.

    Raises
    ------
    UserError
        If one is no choice of one value out of a list.
    """
    choices: dict[str, list[Any]] = {}
    for label, mutable in space.simplify().items():
        if isinstance(mutable, Categorical):
            choices[str(label)] = list(mutable.values)
        elif isinstance(mutable, CategoricalMultiple) and mutable.n_chosen == 1:
            choices[str(label)] = [[value] for value in mutable.values]
        else:
            kind = "constraint" if isinstance(mutable, MutableAnnotation) else "choice"
            raise UserError(
                f"space {type(space).__name__} cannot be relaxed: the {kind} '{label}' "
                f"({mutable!r}) does not pick one value out of a list"
            )
    if not choices:
        raise UserError(f"space {type(space).__name__} cannot be relaxed: it has no choices")
    return choices
