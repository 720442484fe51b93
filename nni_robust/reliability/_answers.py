"""What is checked where a network only answers: pictures that nobody attacked it with."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from nni_robust.reliability._checks import CHECKS, Reliability, not_run
from nni_robust.reliability._network import NetworkProbe
from nni_robust.threat import ThreatModel

__all__ = ["AnswersMonitor"]

_MOST = 64


class AnswersMonitor:
    """Asks whether answers can be counted on; call its methods inside :func:`undisturbed`.

    Parameters
    ----------
    model
        The network.
    why
        Why checks of gradients and attacks say nothing.
    """

    def __init__(self, model: nn.Module, why: str) -> None:
        self.model, self.why, self.seconds = model, why, 0.0
        self._probe: NetworkProbe | None = None
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def clean(self, x: Tensor, y: Tensor) -> None:
        """A batch before anything is done with it: pictures (N, C, H, W) and labels (N,)."""
        need = _MOST - sum(map(len, self._y))
        if need > 0:
            self._x.append(x[:need])
            self._y.append(y[:need])
        if self._probe is None and sum(map(len, self._y)) > 1:
            self._ask()

    def _ask(self) -> None:
        began = time.perf_counter()
        x, y = torch.cat(self._x), torch.cat(self._y)
        index = torch.arange(len(y), device=y.device)
        self._probe = NetworkProbe(self.model, x, y, index, ThreatModel(eps=0.0), 0)
        self._checks = self._probe.before(gradients=False)
        self._x, self._y = [], [torch.zeros(_MOST)]  # full
        self.seconds += time.perf_counter() - began

    def finish(self) -> Reliability:
        """All outcomes, after the last batch."""
        if self._probe is None:
            self._ask()
        assert self._probe is not None
        began = time.perf_counter()
        found = {check.name: check for check in (*self._checks, *self._probe.after())}
        for name in CHECKS:
            found.setdefault(name, not_run(name, self.why))
        self.seconds += time.perf_counter() - began
        return Reliability(tuple(found.values()), len(self._probe.y), self.seconds)
