"""Weights of the choices: one draw for all modules, Gumbel noise, temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.errors import UserError, nearest

__all__ = [
    "SharedDraw",
    "gumbel_weights",
    "most_likely",
    "one_hot",
    "start_logits",
    "temperature",
]

Choices = Mapping[str, Sequence[Any]]


class SharedDraw:
    """The current weight of every value of every choice, for all modules of one network.

    In NNI's own supermodules each argument of each module draws for itself
    (``MixedOpDifferentiablePolicy.forward_argument``, nni 3.0), so that the widths of one tensor
    disagree; here every module reads the same.

    Parameters
    ----------
    choices
        Label to values. The weights start equal.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = {label: list(values) for label, values in choices.items()}
        self.weights: dict[str, Tensor] = {
            label: torch.full((len(values),), 1 / len(values))
            for label, values in self.choices.items()
        }

    def set(self, weights: Mapping[str, Tensor]) -> None:
        """Take new weights, and keep them with their graph until the next call.

        Raises
        ------
        UserError
            If a label is unknown or missing, or the number of weights is another.
        """
        self.weights = check_weights(self.choices, weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedDraw:
        # Copies of a network, as weight averaging makes them, are not part of the graph.
        copied = SharedDraw(self.choices)
        copied.weights = {label: w.detach().clone() for label, w in self.weights.items()}
        memo[id(self)] = copied
        return copied


def check_weights(choices: Choices, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` in the order of the choices.

    Raises
    ------
    UserError
        If a label is unknown or missing, or the number of weights is another.
    """
    for label in weights:
        if label not in choices:
            raise UserError(
                f"weights: '{label}' is no choice of this space{nearest(label, choices)}"
            )
    result: dict[str, Tensor] = {}
    for label, values in choices.items():
        if label not in weights:
            raise UserError(f"weights: '{label}' is missing")
        if weights[label].shape != (len(values),):
            raise UserError(
                f"weights: the shape {tuple(weights[label].shape)} of '{label}' is not allowed; "
                f"one weight for each of its {len(values)} values is"
            )
        result[label] = weights[label]
    return result


def start_logits(choices: Choices, device: Any = None) -> dict[str, nn.Parameter]:
    """Equal logits of 1/k for every choice of k values, to be trained."""
    return {
        label: nn.Parameter(torch.full((len(values),), 1 / len(values), device=device))
        for label, values in choices.items()
    }


def gumbel_weights(
    logits: Mapping[str, Tensor], tau: float, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Soft weights of every choice, softmax((logits + Gumbel noise) / tau): one draw per label.

    Differentiable in the logits. No straight-through rounding.

    Parameters
    ----------
    logits
        Label to (k,).
    tau
        Temperature, above 0.
    generator
        Of the CPU, so that every device sees the same noise; None is torch's own.

    Raises
    ------
    UserError
        If the temperature is not above 0.
    """
    if not tau > 0:
        raise UserError(f"tau: {tau!r} is not allowed; a number above 0 is")
    weights: dict[str, Tensor] = {}
    for label, theta in logits.items():
        noise = -torch.empty(theta.shape).exponential_(generator=generator).log()
        weights[label] = ((theta + noise.to(theta)) / tau).softmax(-1)
    return weights


def temperature(
    epoch: float, epochs: float = 100, *, initial: float = 5.0, decay: float = 4.5
) -> float:
    """Temperature of an epoch, ``initial * exp(-decay * epoch / epochs)``.

    RNAS-CL's (and FBNetV2's) is ``5 exp(-0.045 epoch)``, the default: 5 at the start, 0.0555 after
    100 epochs. Searches of another length get the same curve, stretched.
    """
    return initial * math.exp(-decay * epoch / epochs)


def one_hot(choices: Choices, sample: Mapping[str, Any], device: Any = None) -> dict[str, Tensor]:
    """Weights that stand for one sample.

    Raises
    ------
    UserError
        If the sample lacks a choice or has a value that is none of its values.
    """
    weights: dict[str, Tensor] = {}
    for label, values in choices.items():
        if label not in sample or sample[label] not in values:
            raise UserError(
                f"sample: {label}: {sample.get(label)!r} is not allowed; "
                f"allowed: {', '.join(map(str, values))}"
            )
        weights[label] = torch.zeros(len(values), device=device)
        weights[label][list(values).index(sample[label])] = 1
    return weights


def most_likely(choices: Choices, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Value with the largest weight or logit of every choice; among equals the first, no noise."""
    checked = check_weights(choices, weights)
    # Not torch.argmax, which is free to take any of equal ones.
    numbers = {label: w.detach().tolist() for label, w in checked.items()}
    return {
        label: values[numbers[label].index(max(numbers[label]))]
        for label, values in choices.items()
    }
