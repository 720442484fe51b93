"""FAB-T: the smallest change that the network's linearisations suggest, in L∞ and L2.

Paper
-----
Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack"
(1907.02044): the projection onto a hyperplane inside the box (section 2), algorithm 1. The targeted
variant, which linearises only the lead of one class, and its settings are those of AutoAttack
(2003.01690).

FAB looks for the smallest change and knows no radius. Here a picture leaves the batch as soon as a
misclassified one inside the ball is known; the authors' code goes on making the change smaller,
to no effect on robust accuracy. A picture for which nothing was found comes back clean.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from nni_robust import registry
from nni_robust.attacks._base import Attack, Victim
from nni_robust.attacks._losses import loss_gradient
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.attacks._survivors import Survivors
from nni_robust.config import parse, strict
from nni_robust.errors import UserError
from nni_robust.threat import Norm, ThreatModel

__all__ = ["FABT", "FABTSettings", "project_onto_hyperplane"]

_DIMS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class FABTSettings:
    """Settings of FAB-T; the defaults are those of AutoAttack.

    Parameters
    ----------
    steps
        Linearisations for each class.
    targets
        Classes to aim at, from the most likely wrong one on; at most all others are used.
    restarts
        Runs for each class; the first starts at the clean picture, the others at random within half
        the radius.
    overshoot
        The change to the boundary is made longer by this factor (eta in the paper), >= 1.
    pull
        Most weight that the step from the clean picture may get (alpha_max), in [0, 1].
    shrink
        After a success the search goes on from this share of the change (beta), in (0, 1).
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1
    overshoot: float = 1.05
    pull: float = 0.1
    shrink: float = 0.9

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for key in ("steps", "targets", "restarts", "overshoot"):
            if not getattr(self, key) >= 1:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number >= 1 is")
        if not 0 <= self.pull <= 1:
            raise UserError(f"pull: {self.pull!r} is not allowed; a number in [0, 1] is")
        if not 0 < self.shrink < 1:
            raise UserError(f"shrink: {self.shrink!r} is not allowed; a number in (0, 1) is")


def project_onto_hyperplane(points: Tensor, w: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The smallest change of points in the box [0, 1] that closes a gap along `w`.

    Each entry moves by ``min(t * speed, room)`` along the sign of ``w * gap``, with speed 1 (L∞) or
    |w| (L2) and the room that the box leaves; what is gained is piecewise linear in t, so the
    sorted breakpoints and running sums give the t that gains the gap exactly.

    Parameters
    ----------
    points
        (N, D), float32 or float64, in [0, 1].
    w
        (N, D), normal vector of the hyperplane.
    gap
        (N,): ``(w * change).sum(1)`` shall be this; its sign may be either.
    norm
        How long a change is.

    Returns
    -------
    Tensor
        (N, D), the changes. Where the box is too small for the gap, as far as it goes.
    """
    tiny = torch.finfo(w.dtype).tiny
    # Squares of small gradients underflow; the hyperplane has no scale.
    scale = w.abs().amax(1, keepdim=True).clamp_min(tiny)
    w, gap = w / scale, gap / scale.squeeze(1)
    direction = w.sign() * gap.sign().unsqueeze(1)
    size = w.abs()
    room = torch.where(direction > 0, 1 - points, points)
    room = torch.where(size > 0, room, 0.0)
    speed = torch.ones_like(w) if norm == "linf" else size
    breaks, order = torch.where(size > 0, room / speed.clamp_min(tiny), 0.0).sort(1)
    rate = (size * speed).gather(1, order)
    own = (size * room).gather(1, order)
    # Before each break: gained by entries that stand at their limit, and rate of those that move.
    full = own.cumsum(1)
    stopped = full - own
    moving = rate.flip(1).cumsum(1).flip(1)
    gained = (stopped + breaks * moving).cummax(1).values  # rounding must not make it fall
    aim = gap.abs().unsqueeze(1)
    place = torch.searchsorted(gained, aim).clamp_max_(w.shape[1] - 1)
    before = stopped.gather(1, place)
    t = ((aim - before) / moving.gather(1, place).clamp_min(tiny)).clamp_min(0)
    reachable = full[:, -1:] > aim
    change = torch.where(reachable, torch.minimum(t * speed, room), room)
    return direction * change


@registry.attacks.register("fab-t")
class FABT(Attack):
    """The targeted fast adaptive boundary attack.

    Parameters
    ----------
    threat
        Ball to search.
    label
        Name in results; None is ``"fab-t"``, with what is not the default.
    **settings
        Fields of :class:`FABTSettings`.

    Raises
    ------
    UserError
        On a setting that does not exist or is out of range.
    """

    def __init__(self, threat: ThreatModel, *, label: str | None = None, **settings: Any) -> None:
        self.settings = s = parse(FABTSettings, settings, "attack 'fab-t'")
        steps = "" if s.steps == 100 else str(s.steps)
        targets = "" if s.targets == 9 else f"-{s.targets}targets"
        restarts = f"x{s.restarts}" if s.restarts > 1 else ""
        super().__init__(threat, label or f"fab-t{steps}{restarts}{targets}")

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        left, restarts = Survivors(victim, y, ball, noise), self.settings.restarts
        for rank in range(1, min(self.settings.targets, left.logits.shape[1] - 1) + 1):
            for restart in range(restarts):
                if len(left):
                    run = (rank - 1) * restarts + restart
                    start = None if restart == 0 else left.ball.random_start(left.noise, 4 * run)
                    left.settle(*self._search(victim, left, left.target(rank), start))
        return left.found

    def _search(
        self, victim: Victim, left: Survivors, aim: Tensor, start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One run on what is left: pictures (clean without success), and which are broken."""
        s, y, ball, norm = self.settings, left.y, left.ball, self.threat.norm
        x = ball.x
        found, broken = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        rows = torch.arange(len(y), device=y.device)
        now = x.clone() if start is None else x + (start - x) / 2
        for _ in range(s.steps):
            lead, w = self._linearise(victim, now, y, aim)
            from_clean = lead + (w * (x - now)).sum(_DIMS)
            flat = w.flatten(1)
            step = project_onto_hyperplane(now.flatten(1), flat, -lead, norm).view_as(x)
            clean_step = project_onto_hyperplane(x.flatten(1), flat, -from_clean, norm).view_as(x)
            size, clean_size = (_length(d, norm).clamp_min(1e-8) for d in (step, clean_step))
            pull = (size / (size + clean_size)).clamp_max(s.pull).view(-1, 1, 1, 1)
            now = torch.lerp(now + s.overshoot * step, x + s.overshoot * clean_step, pull)
            now.clamp_(0, 1)
            with torch.no_grad():
                wrong = victim(now).argmax(1) != y
            done = wrong & (_length(now - x, norm) <= ball.eps)
            # A success outside the ball: go on from a smaller change.
            now = torch.where(
                wrong.view(-1, 1, 1, 1) & ~done.view(-1, 1, 1, 1), torch.lerp(x, now, s.shrink), now
            )
            if bool(done.any()):
                found[rows[done]], broken[rows[done]] = now[done], True
                keep = done.logical_not().nonzero().flatten()
                if len(keep) == 0:
                    break
                rows, y, aim, x, now = (t[keep] for t in (rows, y, aim, x, now))
        return found, broken

    @staticmethod
    def _linearise(victim: Victim, now: Tensor, y: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
        """Lead of the class to reach over the label, and its gradient in the picture."""

        def loss(logits: Tensor, label: Tensor) -> Tensor:
            ends = logits.gather(1, torch.stack([aim, label], 1))
            return ends[:, 0] - ends[:, 1]

        leaf = now.detach().requires_grad_()
        logits = victim(leaf)
        # In float16 too: its gradient of a difference of logits does not underflow, and scaling it
        # would move the hyperplane.
        gradient = loss_gradient(logits, leaf, y, loss)
        victim.watch(gradient)
        return loss(logits.detach(), y), gradient


def _length(change: Tensor, norm: Norm) -> Tensor:
    """(N,), length of each change."""
    order = float("inf") if norm == "linf" else 2
    length: Tensor = torch.linalg.vector_norm(change, order, dim=_DIMS)
    return length
