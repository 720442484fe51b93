"""Training of noise estimators on the noises of the network that they shall serve.

Wsr-NAS (section "AN-Estimator" of its code): per picture four real noises, three at fixed strengths
and one at a random strength for the batch; from any three the fourth is learnt with the squared
error and AdamW. Its schedule warms up for 4,000 steps, but a search has 2,700, so it never leaves
the warm-up; ours fits the length of a search.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_robust.config import parse, strict
from nni_robust.errors import UserError
from nni_robust.noise._base import NoiseEstimator, lengths
from nni_robust.noise._memory import NoiseMemory
from nni_robust.spectrum import spectrum_losses

__all__ = ["NOISE_ATTACK", "EstimatorRecipe", "EstimatorTrainer"]

#: The attack of Wsr-NAS's search: PGD-7 from the picture itself, steps of 2.5 eps / 7.
NOISE_ATTACK: Mapping[str, Any] = {
    "name": "pgd",
    "steps": 7,
    "rel_step": 2.5,
    "random_start": False,
}


@dataclasses.dataclass(frozen=True)
class EstimatorRecipe:
    """How an estimator is trained.

    Parameters
    ----------
    lr, weight_decay
        Of AdamW.
    warmup
        Steps in which the learning rate rises linearly.
    steps
        Step at which its cosine has fallen to 1 %, where it stays.
    batch_size
        Samples per step.
    memory
        Samples that are kept (see :class:`NoiseMemory`).
    random_eps
        The additional strength of a batch is uniform in (0, random_eps), in pixel units; None: no
        additional strength.
    """

    lr: float = 5e-4
    weight_decay: float = 1e-4
    warmup: int = 50
    steps: int = 2700
    batch_size: int = 64
    memory: int = 600
    random_eps: float | None = 0.15

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "memory"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; 1 or more is")
        if not 0 <= self.warmup < self.steps:
            raise UserError(f"warmup: {self.warmup!r} is not allowed; 0 to {self.steps - 1} is")
        for key in ("lr", "weight_decay"):
            if not 0 <= getattr(self, key) < math.inf:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number >= 0 is")
        if self.random_eps is not None and not 0 < self.random_eps < math.inf:
            raise UserError(f"random_eps: {self.random_eps!r} is not allowed; a number > 0 is")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return self.lr * max(0.01, (1 + math.cos(math.pi * share)) / 2)


class EstimatorTrainer:
    """An estimator, the noises it learns from, and its optimizer; all of it can be checkpointed.

    Parameters
    ----------
    estimator
        On the device of the network. One that learns nothing is accepted; its epochs do nothing.
    recipe
        Settings, or a mapping of them.
    seed
        Of everything random.
    """

    def __init__(
        self,
        estimator: NoiseEstimator,
        recipe: EstimatorRecipe | Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.estimator = estimator
        self.recipe = parse(EstimatorRecipe, recipe, "estimator")
        self.memory = NoiseMemory(self.recipe.memory, seed=seed)
        self.seed, self.step, self.epochs = seed, 0, 0
        self._learnt = [p for p in estimator.parameters() if p.requires_grad]
        self._optimizer = (
            torch.optim.AdamW(
                self._learnt, lr=self.recipe.lr, weight_decay=self.recipe.weight_decay
            )
            if self._learnt
            else None
        )

    def refill(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        eps_values: Iterable[float | str],
        attack: str | Mapping[str, Any] = NOISE_ATTACK,
        *,
        norm: Literal["linf", "l2"] = "linf",
        warm_start: bool = False,
        fresh: bool = True,
    ) -> int:
        """Attack batches at every strength and at one random strength, and keep the noises.

        Parameters
        ----------
        model
            Left exactly as it was.
        batches
            Pairs of pictures (B, C, H, W) in [0, 1] and labels (B,), on the network's device.
        eps_values, attack, norm, warm_start
            As in :func:`~nni_robust.spectrum.spectrum_losses`. An estimator should learn from
            noises that are made like those it will be given.
        fresh
            Forget the noises of before, which belong to an earlier network.

        Returns
        -------
        int
            Pictures that went forward and backward; 0 where nothing is learnt, as nothing is
            attacked then.
        """
        if self._optimizer is None:
            return 0
        if fresh:
            self.memory.clear()
        fixed, passes = list(eps_values), 0
        for number, (x, y) in enumerate(batches):
            strengths = list(fixed)
            if self.recipe.random_eps is not None:
                strengths.append(self.memory.strength(number, self.recipe.random_eps))
            found = spectrum_losses(
                model, x, y, strengths, attack, norm=norm, warm_start=warm_start, seed=self.seed
            )
            passes += found.passes
            self.memory.add(x, torch.stack([adv - x for adv in found.adversarial.values()], 1))
        return passes

    def epoch(self) -> float | None:
        """One pass over the memory; returns the mean squared error, None if nothing was learnt."""
        if self._optimizer is None or len(self.memory) == 0:
            return None
        self.estimator.train()
        total, n = 0.0, 0
        for x, sources, noise in self.memory.batches(self.recipe.batch_size, self.epochs):
            if len(x) == 1 and n:
                continue  # batch normalisation has no statistics of one picture
            for group in self._optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.step)
            found = self.estimator(sources, x, lengths(noise).unsqueeze(1))[:, 0]
            loss = (found - noise).square().mean()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self.step += 1
            total, n = total + float(loss.detach()) * len(x), n + len(x)
        self.estimator.eval()
        self.epochs += 1
        return total / n

    def train(self, epochs: int) -> list[float]:
        """Several epochs; their mean squared errors."""
        return [loss for _ in range(epochs) if (loss := self.epoch()) is not None]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, as plain tensors by name."""
        state = {f"estimator.{k}": v.detach().clone() for k, v in self._weights().items()}
        state["counts"] = torch.tensor([self.step, self.epochs])
        state.update({f"memory.{k}": v for k, v in self.memory.state_dict().items()})
        if self._optimizer is not None:
            for i, p in enumerate(self._learnt):
                for key, value in self._optimizer.state.get(p, {}).items():
                    state[f"optimizer.{i}.{key}"] = torch.as_tensor(value).detach().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict` of a trainer with the same settings and seed."""
        self.estimator.load_state_dict(_below(state, "estimator."))
        self.step, self.epochs = (int(n) for n in state["counts"])
        self.memory.load_state_dict(_below(state, "memory."))
        if self._optimizer is None:
            return
        self._optimizer.state.clear()
        for i, p in enumerate(self._learnt):
            kept = _below(state, f"optimizer.{i}.")
            if kept:
                self._optimizer.state[p] = {key: value.clone() for key, value in kept.items()}

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.estimator.state_dict())


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
