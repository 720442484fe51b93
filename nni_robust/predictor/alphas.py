"""Architecture logits that follow the gradient of an objective through a loss predictor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nni_robust.config import strict
from nni_robust.data.seeding import generator
from nni_robust.errors import UserError
from nni_robust.objective import SpectrumObjective
from nni_robust.sampling import Sample

from .encoding import Encoding
from .fit import load_optimizer, optimizer_tensors

__all__ = ["AlphaSettings", "ArchitectureLogits"]

#: Draws of noise after which a space whose rule refuses them all counts as impossible.
_PATIENCE = 2000


@dataclasses.dataclass(frozen=True)
class AlphaSettings:
    """How logits are moved.

    Parameters
    ----------
    lr
        Learning rate of Adam; None is 3e-4 (PVLL-NAS), in legacy mode the 3e-5 of Wsr-NAS, with
        which a whole search moves the logits by less than the noise of one draw, and a few epochs
        by less than their initial differences.
    betas
        Of Adam.
    steps
        Steps in each epoch. The first follows the noise of the epoch's own path, as in Wsr-NAS;
        each further one has a draw of its own.
    init
        Standard deviation of the initial logits.
    """

    lr: float | None = None
    betas: tuple[float, float] = (0.5, 0.999)
    steps: int = 1
    init: float = 1e-3

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if self.lr is not None and not 0 <= self.lr < math.inf:
            raise UserError(f"alpha.lr: {self.lr} is not allowed; a number >= 0 is")
        if self.steps < 0:
            raise UserError(f"alpha.steps: {self.steps} is not allowed; at least 0 is")
        if not 0 <= self.init < math.inf:
            raise UserError(f"alpha.init: {self.init} is not allowed; a number >= 0 is")
        if not all(0 <= b < 1 for b in self.betas):
            raise UserError(
                f"alpha.betas: {list(self.betas)} is not allowed; two numbers from 0 to below 1 are"
            )


class ArchitectureLogits:
    """Logits of every choice, with Gumbel noise to draw by and Adam to move them.

    Parameters
    ----------
    encoding
        Of the space.
    settings
        `lr` must be given.
    tau
        Temperature of the relaxation.
    seed
        Of initial values and draws.
    allowed
        Whether a sample keeps the space's rules; draws that do not are repeated.
    """

    def __init__(
        self,
        encoding: Encoding,
        settings: AlphaSettings,
        *,
        tau: float = 0.1,
        seed: int = 0,
        allowed: Callable[[Sample], bool] = lambda sample: True,
    ) -> None:
        self.encoding, self.settings, self.tau, self.seed = encoding, settings, tau, seed
        self.allowed = allowed
        start = torch.randn(encoding.mask.shape, generator=generator(seed, "alpha"))
        self.initial = settings.init * start.masked_fill(~encoding.mask, 0)
        self.logits = self.initial.clone().requires_grad_()
        self.optimizer = torch.optim.Adam(
            [self.logits], lr=settings.lr or 0.0, betas=settings.betas
        )

    def draw(self, *place: int | str, around: Tensor | None = None) -> tuple[Tensor, Sample]:
        """Gumbel noise (rows, width) and the architecture that it and the logits give.

        Parameters
        ----------
        place
            What the draw is for; equal places give equal noise.
        around
            Logits to draw around; None is the current ones.

        Raises
        ------
        UserError
            If the space's rules refuse every draw.
        """
        numbers = generator(self.seed, "gumbel", *place)
        logits = self.logits.detach() if around is None else around
        for _ in range(_PATIENCE):
            uniform = torch.rand(logits.shape, generator=numbers, dtype=torch.float64)
            noise = -(-uniform.clamp(1e-300, 1 - 1e-16).log()).log()
            noise = noise.float()
            sample = self.encoding.decode(logits + noise)
            if self.allowed(sample):
                return noise, sample
        raise UserError(f"the space's rules refuse {_PATIENCE} draws in a row")

    def weights(self, noise: Tensor | None = None) -> Tensor:
        """The matrix (rows, width) of the logits, with a draw's noise or without; differentiable.

        Padding is zero.
        """
        logits = self.logits if noise is None else self.logits + noise
        return self.encoding.relax(logits, self.tau)

    def step(self, predictor: nn.Module, objective: SpectrumObjective, noise: Tensor) -> float:
        """One step against the gradient of the predicted objective; returns it as it was before."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            value = objective.value(predictor(self.weights(noise)[None]))[0]
            (gradient,) = torch.autograd.grad(value, self.logits)
        self.logits.grad = gradient.masked_fill(~self.encoding.mask, 0)
        self.optimizer.step()
        return float(value.detach())

    def best(self) -> Sample:
        """The architecture of the logits without noise."""
        return self.encoding.decode(self.logits)

    def drift(self) -> dict[str, float]:
        """How far the logits are from where they started.

        Returns
        -------
        dict
            ``rms`` and ``max`` of the change of a logit; ``relative``: rms in units of the initial
            logits' own rms (below about 1 the result is mostly the initial noise); ``changed``:
            choices of the result that differ from the initial ones; ``choices``: all of them.
        """
        mask = self.encoding.mask
        change = (self.logits.detach() - self.initial)[mask]
        before, now = self.encoding.decode(self.initial), self.best()
        rms, unit = float(change.square().mean().sqrt()), self.initial[mask].square().mean().sqrt()
        return {
            "rms": rms,
            "max": float(change.abs().max()),
            "relative": rms / max(float(unit), 1e-12),
            "changed": self.encoding.choices - self.encoding.shared(before, now),
            "choices": self.encoding.choices,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything to go on from."""
        return {"logits": self.logits.detach().clone(), **optimizer_tensors(self.optimizer)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave."""
        with torch.no_grad():
            self.logits.copy_(tensors["logits"])
        load_optimizer(self.optimizer, tensors)
