"""DeepFool: step after step to the nearest linearised decision boundary, in L∞ and L2.

Paper
-----
Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural
networks" (1511.04599): algorithm 2, and section 3.3 for L∞, where distances to hyperplanes take the
dual norm (L1) of the gradients and the step their signs.

DeepFool looks for the smallest change and knows no radius; what it finds is moved to the nearest
picture in the ball, as RobNet's paper reports it ("bounded by 8/255"). Like torchattacks 3.5.1, it
keeps to [0, 1] and makes each step longer by the overshoot; like the authors' code, it looks at the
ten most likely classes only. RobNet's paper names neither steps nor overshoot; the defaults here
are torchattacks'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nni_robust import registry
from nni_robust.attacks._base import Attack, Victim
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["DeepFool"]

# As in the authors' code.
_CLASSES = 10


@registry.attacks.register("deepfool")
class DeepFool(Attack):
    """DeepFool bounded by the ball.

    Parameters
    ----------
    threat
        Ball. Its norm is that of the change that is looked for.
    steps
        Most linearisations of the network for a picture.
    overshoot
        Each step is made longer by this share.
    label
        Name in results; None is ``"deepfool"``, with the steps if they are not 50.

    Raises
    ------
    UserError
        If a value is out of range.
    """

    def __init__(
        self,
        threat: ThreatModel,
        *,
        steps: int = 50,
        overshoot: float = 0.02,
        label: str | None = None,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UserError(f"deepfool.steps: {steps!r} is not allowed; a whole number >= 1 is")
        if not isinstance(overshoot, (int, float)) or not 0 <= overshoot < float("inf"):
            raise UserError(f"deepfool.overshoot: {overshoot!r} is not allowed; a number >= 0 is")
        super().__init__(threat, label or f"deepfool{'' if steps == 50 else steps}")
        self.steps, self.overshoot = steps, overshoot

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        found = ball.x.clone()
        rows, now = torch.arange(len(y), device=y.device), found.clone()
        for _ in range(self.steps):
            logits = victim(now.requires_grad_())
            if not logits.requires_grad:
                raise UserError(
                    "a gradient attack needs a differentiable network; the logits have no gradient"
                )
            keep = (logits.detach().argmax(1) == y[rows]).nonzero().flatten()
            if len(keep) == 0:
                break
            step = self._step(victim, logits, now, y[rows])[keep]
            rows = rows[keep]
            now = (now.detach()[keep] + (1 + self.overshoot) * step).clamp_(0, 1)
            found[rows] = now
        return found

    def _step(self, victim: Victim, logits: Tensor, now: Tensor, y: Tensor) -> Tensor:
        """The way to the nearest boundary; where the network is flat, none."""
        values = logits.detach()
        likely = values.scatter(1, y[:, None], float("-inf")).argsort(1, descending=True)
        best = torch.full_like(values[:, 0], float("inf"))
        step = torch.zeros_like(now)
        for rank in range(min(_CLASSES, logits.shape[1]) - 1):
            ends = logits.gather(1, torch.stack([likely[:, rank], y], 1))
            lead = ends[:, 0] - ends[:, 1]
            (w,) = torch.autograd.grad(lead.sum(), now, retain_graph=True)
            victim.watch(w)
            flat = w.flatten(1)
            # Squares of small gradients underflow, so sizes are those of the scaled gradient.
            scale = flat.abs().amax(1).clamp_min(torch.finfo(w.dtype).tiny)
            flat = flat / scale[:, None]
            gap = lead.detach().abs().to(w.dtype) / scale
            if self.threat.norm == "linf":
                size = flat.abs().sum(1)
                distance, way = gap / size, flat.sign()
            else:
                size = flat.norm(dim=1)
                distance, way = gap / size, flat / size[:, None]
            nearer = (size > 0) & (distance < best)
            best = torch.where(nearer, distance, best)
            move = (distance[:, None] * way).view_as(now)
            step = torch.where(nearer.view(-1, 1, 1, 1), move, step)
        return step
