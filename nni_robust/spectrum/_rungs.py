"""One attack at rising strengths, and how it goes on from one strength to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nni_robust._pictures import as_threat
from nni_robust.attacks import Attack, attack_from_spec
from nni_robust.attacks.gradient import PGD
from nni_robust.config import parse_ratio
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["Rung", "Steps", "make_rungs"]

#: Numbers of steps: one for all strengths, one per strength in the order of the strengths, or by
#: strength.
Steps = int | Sequence[int] | Mapping[float, int] | None


@dataclasses.dataclass(frozen=True)
class Rung:
    """The attack at one strength.

    Parameters
    ----------
    attack
        The attack; with a radius of 0 it does nothing.
    warm
        Whether it can start from pictures of a smaller strength.
    """

    attack: Attack
    warm: bool

    @property
    def eps(self) -> float:
        return self.attack.threat.eps

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        seed: int | None,
        index: Tensor,
        before: tuple[Tensor, float] | None,
    ) -> Tensor:
        """Attack pictures, from those of a smaller strength (pictures, eps) where it can.

        A change is stretched by the ratio of the strengths: what a sign attack found lies at the
        rim of the small ball, and its place in the larger one is at the rim too.
        """
        attack = self.attack
        if self.warm and before is not None and before[1] > 0:
            assert isinstance(attack, PGD)
            adv, eps = before
            attack = attack.starting_from(x + (adv - x) * (self.eps / eps))
        return attack(model, x, y, seed=seed, index=index)


def make_rungs(
    spec: str | Mapping[str, Any],
    eps_values: Iterable[float | str],
    norm: str,
    *,
    steps: Steps = None,
    early_exit: bool,
    warm_start: bool,
    what: str,
) -> list[Rung]:
    """The attack at each strength, weakest first, each strength once.

    Parameters
    ----------
    spec
        Name or mapping of an untargeted attack, without eps and norm. A mapping may have
        ``rel_step``: the length of a step in units of eps / steps, with the attack's own number of
        steps whatever replaces it.
    eps_values
        Radii in pixel units, any order.
    steps
        Replaces the attack's number of steps.
    early_exit
        Pictures leave once they are misclassified, unless the mapping has ``early_stop``.
    what
        Name of the caller, for messages.

    Raises
    ------
    UserError
        On no strengths, one out of range, or an attack that cannot be used.
    """
    if not isinstance(spec, (str, Mapping)) or (
        not isinstance(spec, str) and {"eps", "norm"} & spec.keys()
    ):
        raise UserError(f"{what} takes the attack as a name or a mapping without eps and norm")
    if isinstance(eps_values, (str, bytes)) or not isinstance(eps_values, Iterable):
        raise UserError(f"eps_values: {eps_values!r} is not allowed; a list of strengths is")
    threats = [as_threat({"norm": norm, "eps": eps}) for eps in eps_values]
    if not threats:
        raise UserError(f"{what} needs at least one eps")
    numbers = _steps_by_eps(steps, [threat.eps for threat in threats])
    settings: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    relative = settings.pop("rel_step", None)
    rungs = []
    for eps, threat in sorted({t.eps: t for t in threats}.items()):
        attack = _changed(attack_from_spec(settings, threat), threat, numbers.get(eps), relative)
        if attack.targeted:
            raise UserError(
                f"attack '{attack.key}' is targeted; robustness is measured with untargeted attacks"
            )
        if early_exit and "early_stop" not in settings:
            attack = attack.with_early_exit()
        # One step is one step from the picture, unless the caller chose the number of steps.
        several = isinstance(attack, PGD) and (attack.settings.steps > 1 or steps is not None)
        rungs.append(Rung(attack, warm_start and several))
    return rungs


def _steps_by_eps(steps: Steps, eps_values: list[float]) -> dict[float, int]:
    if steps is None:
        return {}
    pairs: list[tuple[Any, Any]]
    if isinstance(steps, Mapping):
        pairs = [(parse_ratio(eps), number) for eps, number in steps.items()]
        missing = set(eps_values) - {eps for eps, _ in pairs}
        if missing:
            raise UserError(f"steps: no number of steps for eps {min(missing):g}")
    elif isinstance(steps, Sequence) and not isinstance(steps, str):
        if len(steps) != len(eps_values):
            raise UserError(
                f"steps: {len(steps)} numbers for {len(eps_values)} strengths are not allowed"
            )
        pairs = list(zip(eps_values, steps, strict=True))
    else:
        pairs = [(eps, steps) for eps in eps_values]
    for _, number in pairs:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UserError(f"steps: {number!r} is not allowed; a whole number >= 1 is")
    return dict(pairs)


def _changed(attack: Attack, threat: ThreatModel, steps: int | None, relative: Any) -> Attack:
    """The attack with another number of steps and a step relative to its radius."""
    if steps is None and relative is None:
        return attack
    if not isinstance(attack, PGD) or attack.name == "fgsm":
        raise UserError(f"attack '{attack.label}' has no steps; steps and rel_step are for PGD")
    settings = {
        f.name: getattr(attack.settings, f.name) for f in dataclasses.fields(attack.settings)
    }
    plain = type(attack)(threat, **settings)
    label = attack.label if attack.label != plain.label else None
    settings["steps"] = steps or attack.settings.steps
    if relative is not None:
        relative = parse_ratio(relative)
        if isinstance(relative, bool) or not isinstance(relative, (int, float)) or relative <= 0:
            raise UserError(f"rel_step: {relative!r} is not allowed; a number > 0 is")
        if attack.settings.step_size is not None:
            raise UserError("rel_step and step_size are two ways to say one thing; give one")
        # A radius of 0 is never attacked, but its settings must be valid.
        settings["step_size"] = relative * (threat.eps or 1.0) / attack.settings.steps
    return type(attack)(threat, label=label, **settings)
