"""Everything that is checked while one network is evaluated."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nni_robust._resuming import EvaluationFolder
from nni_robust.attacks import Attack
from nni_robust.reliability._attacks import attack_mode, broken_alone, few_classes
from nni_robust.reliability._checks import CANNOT_FAIL, CHECKS, Check, Reliability, not_run
from nni_robust.reliability._examples import Examples
from nni_robust.reliability._network import NetworkProbe
from nni_robust.reliability._results import Outcome, compare
from nni_robust.reliability._strength import reaches_eps, weak_attack
from nni_robust.reliability._thorough import THOROUGH_PICTURES, Sample, thorough_checks

__all__ = ["Monitor"]

# The checks of the network ask about one in 16 pictures, which costs about 2 % of PGD-20.
_ONE_IN, _LEAST, _MOST = 16, 8, 64
_UNASKED = "it takes a thorough evaluation"


class Monitor:
    """Watches one evaluation; call its methods inside :func:`undisturbed`.

    Parameters
    ----------
    model
        The network.
    attacks
        What will be run. Without any, nothing is checked.
    seed
        Of the evaluation's random starts.
    thorough
        Also run the checks that cost more attacks, on the first 256 pictures.
    home
        Where those keep what they found, to go on after a kill; None keeps nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        attacks: Sequence[Attack],
        *,
        seed: int,
        thorough: bool = False,
        home: EvaluationFolder | None = None,
    ) -> None:
        self.model, self.attacks, self.seed = model, list(attacks), seed
        self.thorough, self.home, self.seconds = thorough, home, 0.0
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._have, self._size = 0, 0
        self._probe: NetworkProbe | None = None
        self._checks: list[Check] = []
        self._examples = Examples(_MOST)
        # Attacks count over all calls, and may have been used before.
        self._alone = {attack.key: broken_alone(attack) for attack in self.attacks}

    def clean(self, x: Tensor, y: Tensor, good: Tensor, first: int, total: int | None) -> None:
        """A batch before it is attacked.

        Parameters
        ----------
        x, y, good
            Pictures (N, C, H, W), labels (N,), and whether the network is right (N,).
        first
            Place of the first picture in the data.
        total
            Pictures in all, where that is known.
        """
        if not self.attacks:
            return
        with self._timed():
            if not self._parts:
                known = len(y) if total is None else total
                self._size = min(max(known // _ONE_IN, _LEAST), _MOST)
            need = (THOROUGH_PICTURES if self.thorough else self._size) - self._have
            if need > 0:
                index = torch.arange(first, first + len(y), device=y.device)
                self._parts.append((x[:need], y[:need], index[:need], good[:need]))
                self._have += len(self._parts[-1][1])
            if self._probe is None and self._have >= self._size:
                self._ask()

    def attacked(
        self,
        attack: Attack,
        x: Tensor,
        adv: Tensor,
        y: Tensor,
        correct: Tensor,
        outside: Tensor | None = None,
    ) -> None:
        """Pictures before and after an attack, and whether the network is still right.

        `outside` says which are outside of ball or box, where that is known from before.
        """
        self._examples.add(attack, x, adv, y, correct, outside)

    def finish(
        self, outcomes: Sequence[Outcome], *, batch_size: int, nested: bool = False
    ) -> Reliability:
        """All outcomes, after the last batch.

        Parameters
        ----------
        outcomes
            What each attack left over.
        batch_size
            Pictures in memory at a time.
        nested
            Each attack only saw what all before it had left: figures cannot contradict each other,
            and are not those of one attack.
        """
        if not self.attacks:
            return Reliability.unknown("nothing was attacked")
        with self._timed():
            if self._probe is None:
                self._ask()
            assert self._probe is not None
            found = {check.name: check for check in (*self._checks, *self._probe.after())}
            found |= self._named(
                few_classes(self.attacks, self._probe.classes),
                attack_mode(self.attacks),
                reaches_eps(self.attacks),
                *self._examples.checks(self.model),
                *compare([self._with_parts(outcome) for outcome in outcomes]),
                weak_attack([] if nested else outcomes),
            )
            if nested:
                why = CANNOT_FAIL + "what breaks at one strength counts as broken above it"
                found |= self._named(not_run("rises-with-eps", why))
            if self.thorough:
                sample = Sample(*self._gathered(self._have))
                more = thorough_checks(
                    self.model,
                    sample,
                    self.attacks,
                    [] if nested else outcomes,
                    seed=self.seed,
                    batch_size=batch_size,
                    home=self.home,
                )
                found |= self._named(*more)
            unknown = {"training-collapse": "how the network was trained is not known here"}
            for name in CHECKS:
                found.setdefault(name, not_run(name, unknown.get(name, _UNASKED)))
        return Reliability(tuple(found.values()), len(self._probe.y), self.seconds)

    def _with_parts(self, outcome: Outcome) -> Outcome:
        before, after = self._alone[outcome.attack.key], broken_alone(outcome.attack)
        if before is None or after is None:
            return outcome
        return dataclasses.replace(outcome, alone=after - before)

    @staticmethod
    def _named(*checks: Check) -> dict[str, Check]:
        return {check.name: check for check in checks}

    def _gathered(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures, labels, places, and which are right, of the first pictures."""
        x, y, index, good = (torch.cat(parts)[:count] for parts in zip(*self._parts, strict=True))
        return x, y, index, good

    def _ask(self) -> None:
        x, y, index, _ = self._gathered(self._size)
        threats = [attack.threat for attack in self.attacks]
        threat = next((t for t in threats if t.eps > 0), threats[0])
        self._probe = NetworkProbe(self.model, x, y, index, threat, self.seed)
        self._checks = self._probe.before()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
