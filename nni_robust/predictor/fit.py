"""Fitting a loss predictor to a memory that grows."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from nni_robust.data.seeding import derive_seed, generator

from .linear import LinearPredictor
from .lstm import LossPredictor, PredictorSettings
from .replay import ReplayMemory

__all__ = ["PredictorFit", "load_optimizer", "optimizer_tensors", "rank_agreement"]


class PredictorFit:
    """A predictor with its optimizer: fitted again and again to a growing memory.

    Parameters
    ----------
    rows, width
        Of the matrices.
    outputs
        Number of losses.
    settings
        How to fit.
    seed
        Of weights, order and noise. Each fit has numbers of its own, counted by :attr:`fits`, so
        that a restored object goes on as if nothing had happened.
    """

    def __init__(
        self, rows: int, width: int, outputs: int, settings: PredictorSettings, seed: int
    ) -> None:
        self.settings, self.seed, self.fits = settings, seed, 0
        self.model: LossPredictor | LinearPredictor
        self.optimizer: torch.optim.Optimizer | None = None
        if settings.kind == "lstm":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derive_seed(seed, "predictor"))
                self.model = LossPredictor(width, outputs, settings.hidden, settings.head)
            self.optimizer = torch.optim.Adam(
                self.model.parameters(),
                lr=settings.lr or 1e-2,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
            )
        else:
            self.model = LinearPredictor(rows, width, outputs)

    def fit(self, memory: ReplayMemory, passes: int) -> None:
        """Fit to the memory, an LSTM in so many passes; an empty memory changes nothing."""
        weights, losses = memory.tensors()
        if len(losses) == 0:
            return
        number = self.fits
        self.fits += 1
        if isinstance(self.model, LinearPredictor):
            self.model.fit(weights, losses)
            return
        assert self.optimizer is not None
        self.model.standardise(losses)
        numbers = generator(self.seed, "fit", number)
        for _ in range(passes):
            order = torch.randperm(len(losses), generator=numbers)
            for rows in torch.split(order, self.settings.batch_size):
                noise = torch.randn(weights[rows].shape, generator=numbers)
                noisy = weights[rows] + self.settings.input_noise * noise
                self.optimizer.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    self.model.error(noisy, losses[rows]).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()

    @torch.no_grad()
    def predict(self, weights: Tensor) -> Tensor:
        """Losses (N, outputs) of matrices (N, rows, width)."""
        predicted: Tensor = self.model(weights)
        return predicted

    def tensors(self) -> dict[str, Tensor]:
        """Everything to go on from, with :attr:`fits`."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.optimizer is not None:
            tensors |= optimizer_tensors(self.optimizer)
        return tensors

    def load(self, tensors: dict[str, Tensor], fits: int) -> None:
        """Take up what :meth:`tensors` gave."""
        model = {n[6:]: t for n, t in tensors.items() if n.startswith("model.")}
        self.model.load_state_dict(model)
        if self.optimizer is not None:
            load_optimizer(self.optimizer, tensors)
        self.fits = fits


def rank_agreement(first: Tensor, second: Tensor) -> float | None:
    """Kendall's tau-b of two lists of values; None where it is not defined."""
    if len(first) < 2:
        return None
    tau = float(stats.kendalltau(first.tolist(), second.tolist()).statistic)
    return tau if math.isfinite(tau) else None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an Adam as tensors with names."""
    return {
        f"adam.{number}.{key}": value.clone()
        for number, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the state of :func:`optimizer_tensors` back."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
