"""The differentiable cost of a relaxed network inside the search's loss."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nni_robust.distillation.settings import CostTerm
from nni_robust.errors import UserError
from nni_robust.relaxation import Relaxed

__all__ = ["CostModel", "latency_table"]

#: Pictures of a batch that is timed, and how often; the median counts.
_BATCH, _REPEATS = 16, 15


class CostModel:
    """Expected cost of a draw, and what it does to the loss.

    Parameters
    ----------
    relaxed, term
        What costs, and how it counts.
    input_shape
        (C, H, W).
    device
        Where latency is timed.
    budget
        Metric to cost: the target where the term has none.

    Attributes
    ----------
    table
        Milliseconds of every value of every choice, where latency is the metric; part of the
        search's state, for timings do not repeat.
    """

    def __init__(
        self,
        relaxed: Relaxed,
        term: CostTerm,
        input_shape: Sequence[int],
        device: torch.device,
        budget: Mapping[str, float],
    ) -> None:
        self.relaxed, self.term, self.shape, self.device = relaxed, term, input_shape, device
        self.active = term.kind != "none" and bool(relaxed.choices)
        self.table: dict[str, Any] | None = None
        if self.active and term.metric == "latency":
            self.table = latency_table(relaxed, input_shape, device)
        self._target = term.target or budget.get(term.metric)

    def expected(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Cost of the network with these weights of the choices, a scalar; 0 where none counts."""
        if not self.active:
            return torch.zeros((), device=self.device)
        if self.table is None:
            costs = self.relaxed.cost(weights, self.shape)
            if self.term.metric not in costs:
                raise UserError(
                    f"cost.metric: the relaxed space knows no '{self.term.metric}' "
                    f"(allowed: {', '.join(costs) or 'none'})"
                )
            return costs[self.term.metric]
        total = torch.tensor(self.table["base"], dtype=torch.float64, device=self.device)
        for label, w in weights.items():
            extra = torch.tensor(self.table["extra"][label], dtype=torch.float64, device=w.device)
            total = total + w.double() @ extra
        return total

    @property
    def target(self) -> float:
        """Cost aimed at."""
        if self._target is None:
            even = {
                label: torch.full((len(values),), 1 / len(values), device=self.device)
                for label, values in self.relaxed.choices.items()
            }
            self._target = float(self.expected(even))
        return self._target

    def applied(self, loss: Tensor, cost: Tensor) -> Tensor:
        """The loss with the cost."""
        if not self.active:
            return loss
        term = self.term
        if term.kind == "fbnet":
            return loss * (term.alpha * term.beta * cost.log()).to(loss.dtype)
        share = (cost / self.target).to(loss.dtype)
        return loss + term.weight * ((share - 1).clamp_min(0) if term.kind == "hinge" else share)


def latency_table(
    relaxed: Relaxed, input_shape: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """Milliseconds for a batch of 16 pictures, one choice changed at a time.

    Returns
    -------
    ``base``: with the first value of every choice; ``extra``: label to what each of its values
    adds. Exact where choices do not affect one another's time.
    """
    first = {label: values[0] for label, values in relaxed.choices.items()}
    base = _milliseconds(relaxed, first, input_shape, device)
    extra = {
        label: [
            0.0
            if position == 0
            else _milliseconds(relaxed, {**first, label: value}, input_shape, device) - base
            for position, value in enumerate(values)
        ]
        for label, values in relaxed.choices.items()
    }
    return {"base": base, "extra": extra}


def _milliseconds(
    relaxed: Relaxed,
    sample: Mapping[str, Any],
    input_shape: Sequence[int],
    device: torch.device,
) -> float:
    network = relaxed.freeze(sample).to(device).eval()
    x = torch.zeros(_BATCH, *input_shape, device=device)
    times = []
    with torch.no_grad():
        network(x)
        for _ in range(_REPEATS):
            _wait(device)
            began = time.perf_counter()
            network(x)
            _wait(device)
            times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[_REPEATS // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
