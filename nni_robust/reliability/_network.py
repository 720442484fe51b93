"""Checks of the network itself, on a few of the pictures that are attacked."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from nni_robust.attacks import Ball, Victim
from nni_robust.attacks._losses import LOSSES, loss_gradient
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import ball_around
from nni_robust.errors import UserError
from nni_robust.reliability._autograd import gradient_calls
from nni_robust.reliability._checks import Check, failed, not_run, passed
from nni_robust.threat import ThreatModel

__all__ = ["HALVES", "NetworkProbe"]

HALVES = (torch.float16, torch.bfloat16)

#: AutoAttack's thresholds: normalised logits, and sums of probabilities.
SAME_LOGITS = 1e-4
IS_ONE = 1e-5
# What probabilities in half precision add up to.
_IS_ONE_HALF = 1e-2
# Pictures whose equal answers are no accident, as with ten classes chance would have it so once in
# ten million times.
_ENOUGH = 8
#: Forward passes that must agree, the last of them after the attacks.
PASSES = 5


@dataclasses.dataclass
class NetworkProbe:
    """Asks one network about a few pictures, before the attacks and once more after them.

    Parameters
    ----------
    model
        The network, frozen in evaluation mode.
    x, y
        Pictures (P, C, H, W) in [0, 1] on its device, and labels (P,).
    index
        (P,), int64: places of the pictures in the data, for the random start.
    threat
        Ball of the random start.
    seed
        Of the random start.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    threat: ThreatModel
    seed: int

    def before(self, gradients: bool = True) -> list[Check]:
        """Everything but the answers after the attacks; without gradients, the answers alone."""
        cuda = [self.x.device] if self.x.device.type == "cuda" else []
        # The numbers that a randomised network draws here are not missing later.
        with torch.random.fork_rng(devices=cuda):
            victim = Victim(self.model, self.x.dtype)
            with torch.no_grad():
                with gradient_calls() as calls:
                    self.answers = [victim(self.x)]
                self.answers += [victim(self.x) for _ in range(PASSES - 2)]
            if not gradients:
                return [self._batch(victim), self._one_answer()]
            gradient, more = self._gradient(victim)
            low = self.x.dtype in HALVES or torch.is_autocast_enabled(self.x.device.type)
            checks = [self._batch(victim), self._one_answer(), gradient]
            checks.append(_softmax(self.answers[0], low))
        return [*checks, self._dynamic(len(calls) + more)]

    @property
    def classes(self) -> int:
        """Number of classes; after `before`."""
        return self.answers[0].shape[1]

    def after(self) -> list[Check]:
        """Whether all passes agree, and whether the attacks changed the network."""
        cuda = [self.x.device] if self.x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            last = Victim(self.model, self.x.dtype)(self.x)
        noise, changed = _spread(self.answers, self.y)
        figures = {"logits": noise, "pictures": float(changed)}
        if not noise <= SAME_LOGITS or changed:
            reason = (
                "the network is randomised: asked again, its normalised logits differ by up to "
                f"{noise:.2g} and the number of right answers by {changed} of {len(self.y)}; an "
                "attack has to average over its randomness"
            )
            return [
                failed("randomised", reason, **figures),
                not_run("eps-zero", "the network is randomised"),
            ]
        same = passed("randomised", **figures)
        moved, _ = _spread([self.answers[0], last], self.y)
        right, still = (a.argmax(1) == self.y for a in (self.answers[0], last))
        flipped = int((right != still).sum())
        if flipped or not moved <= SAME_LOGITS:
            reason = (
                "the network answers otherwise after the attacks than before (normalised logits "
                f"move by {moved:.2g}, {flipped} of {len(self.y)} answers change): attacks "
                "disturb it, or it remembers what it was asked"
            )
            return [same, failed("eps-zero", reason, logits=moved, pictures=float(flipped))]
        return [same, passed("eps-zero", logits=moved, pictures=0.0)]

    def _batch(self, victim: Victim) -> Check:
        """Ask again with the second half of the batch replaced: same sizes, so same arithmetic."""
        half = len(self.x) // 2
        if half == 0:
            return not_run("batch-dependent", "it takes two pictures")
        if not _spread(self.answers, self.y)[0] <= SAME_LOGITS:
            return not_run("batch-dependent", "the network is randomised")
        with torch.no_grad():
            other = victim(torch.cat([self.x[:half], 1 - self.x[half:]]))
        moved, _ = _spread([self.answers[0][:half], other[:half]], self.y[:half])
        if moved <= SAME_LOGITS:
            return passed("batch-dependent", logits=moved)
        reason = (
            "an answer depends on the other pictures of its batch (normalised logits move by "
            f"{moved:.2g}), as with batch normalisation by the batch's own statistics: accuracy "
            "then depends on how pictures are put together, and attacks on whom they share a "
            "batch with"
        )
        return failed("batch-dependent", reason, logits=moved)

    def _one_answer(self) -> Check:
        """Whether pictures of several classes all get the same answer."""
        n, labels = len(self.y), len(torch.unique(self.y))
        if n < _ENOUGH or labels < 2:
            return not_run("one-answer", f"it takes {_ENOUGH} pictures of two classes")
        answers = torch.unique(self.answers[0].argmax(1))
        if len(answers) > 1:
            return passed("one-answer", answers=float(len(answers)))
        reason = (
            f"the network gives {n} pictures of {labels} classes the same answer, class "
            f"{int(answers)}: it knows nothing that an attack could take away, and what it seems "
            "to withstand is that class's share of the pictures"
        )
        return failed("one-answer", reason, answers=1.0)

    def _gradient(self, victim: Victim) -> tuple[Check, int]:
        """Pictures whose gradient is exactly 0 at a random start; gradients of the network's."""
        right = self.answers[0].argmax(1) == self.y
        with torch.inference_mode(False), torch.enable_grad():
            start = self._start().requires_grad_()
            with gradient_calls() as calls:
                logits = victim(start)
            if not right.any():
                return not_run("zero-gradient", "no picture is right without an attack"), len(calls)
            try:
                flat = margin = self._flat(victim, logits, start, right, "ce")
                if flat:
                    margin = self._flat(victim, victim(start), start, right, "margin")
            except torch.OutOfMemoryError:
                raise
            except (UserError, RuntimeError):  # no gradient reaches the picture at all
                flat = margin = int(right.sum())
        n = int(right.sum())
        shares = {"share": flat / n, "margin": margin / n}
        if not flat:
            return passed("zero-gradient", share=0.0), len(calls)
        first = self.answers[0]
        if len(first) > 1 and bool((first == first[0]).all()):
            reason = "the network gives every picture the same answer, so no attack can change one"
            return failed("zero-gradient", reason, **shares), len(calls)
        reason = (
            f"{flat} of {n} pictures have a gradient of exactly zero at a random start, so "
            "gradient attacks leave them alone; "
        ) + (
            "the network passes no gradient on: attack a differentiable copy of it, or without "
            "gradients (Square)"
            if margin
            else "the margin's gradient does not vanish there, so attack with the loss margin or "
            "dlr (cw, APGD-T)"
        )
        return failed("zero-gradient", reason, **shares), len(calls)

    def _start(self) -> Tensor:
        # A clone: the caller's tensors may have been made in inference mode.
        if self.threat.eps == 0:
            return self.x.clone()
        ball: Ball = ball_around(self.x.clone(), self.threat)
        return ball.random_start(Noise(self.seed, self.index.clone()), 0)

    def _flat(self, victim: Victim, logits: Tensor, start: Tensor, right: Tensor, loss: str) -> int:
        """How many of the pictures that are right have no gradient of a loss."""
        gradient = loss_gradient(logits, start, self.y.clone(), LOSSES[loss], half=victim.half)
        return int(((gradient.flatten(1).abs().amax(1) == 0) & right).sum())

    def _dynamic(self, calls: int) -> Check:
        if calls:  # compiling differentiates, too, but once: a loop does it in every pass
            with gradient_calls() as again, torch.no_grad():
                Victim(self.model, self.x.dtype)(self.x)
            with gradient_calls() as graded, torch.inference_mode(False), torch.enable_grad():
                Victim(self.model, self.x.dtype)(self._start().requires_grad_())
            calls = len(again) + len(graded)
        if not calls:
            return passed("dynamic", calls=0.0)
        reason = (
            f"a forward pass computes gradients of its own ({calls} in two passes): the network "
            "optimises while it answers, and an attack has to be made for that"
        )
        return failed("dynamic", reason, calls=float(calls))


def _softmax(logits: Tensor, half: bool) -> Check:
    tolerance = _IS_ONE_HALF if half else IS_ONE
    low, high = float(logits.min()), float(logits.max())
    off = float((logits.sum(1) - 1).abs().max())
    if not (low > -IS_ONE and high < 1 + IS_ONE and off < tolerance):
        return passed("softmax-output", off=off)
    reason = (
        "the network returns probabilities, not logits: their loss is flat where it is sure, so "
        "gradient attacks are blunted; take the softmax off its end"
    )
    return failed("softmax-output", reason, off=off)


def _spread(answers: list[Tensor], y: Tensor) -> tuple[float, int]:
    """Largest distance of normalised logits, and of the numbers of right answers."""
    every = torch.stack(answers)
    units = every / (every.norm(dim=2, keepdim=True) + 1e-10)
    far = (units.unsqueeze(0) - units.unsqueeze(1)).norm(dim=3).max()
    right = (every.argmax(2) == y).sum(1)
    return float(far), int(right.max() - right.min())
