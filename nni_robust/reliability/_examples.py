"""Checks of what the attacks return: inside ball and box, and fooling in float32 too."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nni_robust.attacks import Attack, Victim
from nni_robust.reliability._checks import Check, failed, not_run, passed
from nni_robust.reliability._network import HALVES

__all__ = ["Examples", "outside_ball"]

#: Slack of the radius, in pixel units.
SLACK = 1e-6
# Share of the kept pictures that may be right again in float32: rounding at the boundary.
_ROUNDING = 0.05


def outside_ball(attack: Attack, x: Tensor, adv: Tensor) -> Tensor:
    """(N,), bool: which adversarial pictures lie outside the attack's ball or outside [0, 1]."""
    found = adv.detach()
    found = found if found.dtype == torch.float64 else found.float()
    change = found - x
    eps, slack = attack.threat.eps, SLACK
    if attack.threat.norm == "linf":
        size = change.abs_().flatten(1).amax(1)
    else:
        size = torch.linalg.vector_norm(change.flatten(1), dim=1)
        slack += 1e-5 * eps  # a sum of many squares in float32
    low, high = found.flatten(1).aminmax(dim=1)
    # Written so that NaN is outside.
    legal: Tensor = (size <= eps + slack) & (low >= -SLACK) & (high <= 1 + SLACK)
    return legal.logical_not()


class Examples:
    """Looks at every adversarial picture of one evaluation, and keeps a few.

    Parameters
    ----------
    keep
        Misclassified pictures of each attack that are kept for float32, where the network computes
        in half precision.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        # Counted on the device, so that no batch waits for it.
        self.outside: dict[str, list[Tensor]] = {}
        self.total = 0
        self.kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.left: dict[str, int] = {}
        self.half = False

    def add(
        self,
        attack: Attack,
        x: Tensor,
        adv: Tensor,
        y: Tensor,
        correct: Tensor,
        outside: Tensor | None = None,
    ) -> None:
        """Look at one attacked batch.

        Parameters
        ----------
        x, adv
            Pictures before and after, (N, C, H, W).
        y
            Labels, (N,).
        correct
            (N,), bool: the network is still right.
        outside
            (N,), bool, see :func:`outside_ball`; None looks.
        """
        if len(x) == 0:
            return
        outside = outside_ball(attack, x, adv) if outside is None else outside
        self.outside.setdefault(attack.key, []).append(outside.sum())
        self.total += len(x)
        if adv.dtype in HALVES or torch.is_autocast_enabled(adv.device.type):
            self._remember(attack.key, adv, y, correct)

    def _remember(self, key: str, adv: Tensor, y: Tensor, correct: Tensor) -> None:
        self.half = True
        left = self.left.setdefault(key, self.keep)
        rows = correct.logical_not().nonzero().flatten()[:left]
        self.left[key] = left - len(rows)
        if len(rows):
            self.kept.setdefault(key, []).append((adv[rows].detach(), y[rows]))

    def checks(self, model: nn.Module) -> list[Check]:
        """The outcomes, after the last batch."""
        return [self._outside(), self._precision(model)]

    def _outside(self) -> Check:
        if not self.total:
            return not_run("outside-ball", "no picture was attacked")
        by_attack = {key: int(torch.stack(found).sum()) for key, found in self.outside.items()}
        count = sum(by_attack.values())
        if not count:
            return passed("outside-ball", outside=0.0, pictures=float(self.total))
        names = ", ".join(key for key, found in by_attack.items() if found)
        reason = (
            f"{count} of {self.total} adversarial pictures lie outside the ball or outside [0, 1] "
            f"({names}): the attack does what the threat forbids, so its figure is not for this "
            "threat"
        )
        return failed("outside-ball", reason, outside=float(count), pictures=float(self.total))

    def _precision(self, model: nn.Module) -> Check:
        if not self.half:
            if not self.total:
                return not_run("precision", "no picture was attacked")
            # Every break of a float32 network was counted by asking it again.
            return passed("precision", share=0.0)
        pairs = [pair for found in self.kept.values() for pair in found]
        if not pairs:
            return not_run("precision", "no attack fooled the network")
        adv, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        try:
            wide = copy.deepcopy(model).float()
        except (RuntimeError, TypeError) as e:
            return not_run("precision", f"the network cannot be copied: {str(e).splitlines()[0]}")
        with torch.no_grad(), torch.autocast(adv.device.type, enabled=False):
            right = Victim(wide, torch.float32)(adv.float()).argmax(1) == y
        share = float(right.float().mean())
        if share <= _ROUNDING:
            return passed("precision", share=share, pictures=float(len(y)))
        reason = (
            f"{share:.0%} of {len(y)} adversarial pictures fool the network in half precision "
            "only: evaluate it in float32"
        )
        return failed("precision", reason, share=share, pictures=float(len(y)))
