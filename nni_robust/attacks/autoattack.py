"""AutoAttack: four attacks in a row, each on the pictures that resisted those before it.

Paper
-----
Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks" (2003.01690). Standard: APGD on the cross entropy, targeted APGD, targeted
FAB, Square, with the settings of the authors' code: 100 steps, 9 target classes, 5,000 queries, one
run. For networks with a random part (``version="rand"``): APGD on cross entropy and DLR with
gradients averaged over 20 passes. The version "plus" is at ``torchattacks:AutoAttack``.

``autoattack-light`` is for use inside searches: the first two, shorter, and three target classes.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nni_robust import registry
from nni_robust.attacks._base import Attack, Victim
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.attacks._progress import BatchProgress, ProgressFolder, network_hash
from nni_robust.attacks._survivors import Survivors
from nni_robust.attacks.apgd import APGDCE, APGDDLR, APGDT
from nni_robust.attacks.fab import FABT
from nni_robust.attacks.square import Square
from nni_robust.config import parse, strict
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["AutoAttack", "AutoAttackLight", "AutoAttackSettings", "LightSettings"]

_RAND_PASSES = 20


@dataclasses.dataclass(frozen=True)
class LightSettings:
    """Settings of the light variant.

    Parameters
    ----------
    steps
        Of each run of APGD.
    targets
        Classes that targeted APGD aims at; at most all others are used.
    folder
        Where to keep what was found, to go on from there after a crash; None keeps nothing. See
        :class:`AutoAttack`.
    """

    steps: int = 30
    targets: int = 3
    folder: str | None = None

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"{field.name}: {value!r} is not allowed; a number >= 1 is")


@dataclasses.dataclass(frozen=True)
class AutoAttackSettings(LightSettings):
    """Settings of AutoAttack; whoever changes the numbers should not call it AutoAttack.

    Parameters
    ----------
    steps
        Of APGD and FAB.
    targets
        Classes that targeted APGD and FAB aim at.
    queries
        Of Square.
    version
        ``"standard"``, or ``"rand"`` for networks with a random part.
    """

    steps: int = 100
    targets: int = 9
    queries: int = 5000
    version: str = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in ("standard", "rand"):
            raise UserError(
                f"version: {self.version!r} is not allowed; allowed: standard, rand "
                "(plus is at torchattacks:AutoAttack)"
            )


class _InARow(Attack):
    """Attacks in a row, each on what the ones before left over.

    A break counts only if it holds for the exact picture that is returned.
    """

    #: The attacks, in order.
    parts: tuple[Attack, ...]
    #: Pictures that each of them broke after those before it, in all calls so far.
    breaks: list[int]
    _folder: Path | None = None

    def keeping_in(self, folder: Path) -> Attack:
        if self._folder is not None:
            return self
        other = copy.copy(self)
        other._folder = folder
        return other

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        left = Survivors(victim, y, ball, noise)
        progress = self._progress(victim, ball, y, noise)
        for number, part in enumerate(self.parts):
            if len(left) == 0:
                break
            resisted = len(left)
            if progress is None:
                left.settle(*_exactly(part, victim, left))
                self.breaks[number] += resisted - len(left)
                continue
            adv, broken, _, tried, *_ = progress.known(number, left.rows)
            open_rows = tried.logical_not().nonzero().flatten()
            if len(open_rows):
                rest = left.only(open_rows)
                new, fooled = _exactly(part, victim, rest)
                adv[open_rows], broken[open_rows] = new, fooled
                # The first attack's pictures also stand for those that resist.
                kept = fooled if number else torch.ones_like(fooled)
                progress.add(number, rest.rows, new, fooled, kept=kept)
            left.settle(adv, broken)
            self.breaks[number] += resisted - len(left)
        return left.found

    def _progress(
        self, victim: Victim, ball: Ball, y: Tensor, noise: Noise
    ) -> BatchProgress | None:
        if self._folder is None:
            return None
        settings = [
            f"{p.key} {p.threat} {p.threat.eps!r} {getattr(p, 'settings', '')}" for p in self.parts
        ]
        folder = ProgressFolder(self._folder, network_hash(victim.model), settings, noise.seed)
        return folder.batch(ball.x, ball.pictures, y, noise.index)


def _exactly(part: Attack, victim: Victim, left: Survivors) -> tuple[Tensor, Tensor]:
    """Run a part; the pictures as they will be returned, and which the network misclassifies."""
    ball, y = left.ball, left.y
    adv = part._run(victim, y, ball, left.noise).detach()
    adv = ball.exact(adv).to(ball.x.dtype)
    with torch.no_grad():
        return adv, victim(adv).argmax(1) != y


@registry.attacks.register("autoattack")
class AutoAttack(_InARow):
    """AutoAttack with its authors' settings.

    With a `folder` what each attack found is written there, batch by batch and in one step, so that
    the same call goes on after a crash: with the same network, pictures, seed and settings, by the
    pictures' `index`, whatever the batches. That needs a seed. Misclassified pictures lie in the
    same files (safetensors).

    Parameters
    ----------
    threat
        Ball.
    label
        Name in results; None is ``"autoattack"``, with what is not the standard.
    **settings
        Fields of :class:`AutoAttackSettings`.

    Raises
    ------
    UserError
        On a setting that does not exist or is out of range, or a folder with the results of another
        network, other pictures or other settings.
    """

    def __init__(self, threat: ThreatModel, *, label: str | None = None, **settings: Any) -> None:
        self.settings = s = parse(AutoAttackSettings, settings, "attack 'autoattack'")
        name = "".join(
            (
                "autoattack",
                "" if s.steps == 100 else str(s.steps),
                "" if s.version == "standard" else f"-{s.version}",
                "" if s.targets == 9 else f"-{s.targets}targets",
                "" if s.queries == 5000 else f"-{s.queries}queries",
            )
        )
        super().__init__(threat, label or name)
        self._folder = None if s.folder is None else Path(s.folder)
        if s.version == "rand":
            self.parts = (
                APGDCE(threat, steps=s.steps, eot=_RAND_PASSES),
                APGDDLR(threat, steps=s.steps, eot=_RAND_PASSES),
            )
        else:
            self.parts = (
                APGDCE(threat, steps=s.steps),
                APGDT(threat, steps=s.steps, targets=s.targets),
                FABT(threat, steps=s.steps, targets=s.targets),
                Square(threat, steps=s.queries),
            )
        self.breaks = [0] * len(self.parts)


@registry.attacks.register("autoattack-light")
class AutoAttackLight(_InARow):
    """APGD on the cross entropy, then targeted APGD: AutoAttack's ranking at a part of its cost.

    Parameters
    ----------
    threat
        Ball.
    label
        Name in results; None is ``"autoattack-light"``, with what is not the default.
    **settings
        Fields of :class:`LightSettings`.

    Raises
    ------
    UserError
        As :class:`AutoAttack`.
    """

    def __init__(self, threat: ThreatModel, *, label: str | None = None, **settings: Any) -> None:
        self.settings = s = parse(LightSettings, settings, "attack 'autoattack-light'")
        steps = "" if s.steps == 30 else str(s.steps)
        targets = "" if s.targets == 3 else f"-{s.targets}targets"
        super().__init__(threat, label or f"autoattack-light{steps}{targets}")
        self._folder = None if s.folder is None else Path(s.folder)
        self.parts = (
            APGDCE(threat, steps=s.steps),
            APGDT(threat, steps=s.steps, targets=s.targets),
        )
        self.breaks = [0] * len(self.parts)
