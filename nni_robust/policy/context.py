"""The task as numbers: what a policy is told besides the network.

The parts are those of RC-NAS (Wang et al., KDD 2024, framework figure): data set, attack, teacher,
cost. How they are written as numbers is ours.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nni_robust.cost import Cost
from nni_robust.policy.choices import Choice
from nni_robust.task import Task

__all__ = ["CONTEXT", "Context", "attack_kind", "features"]

_DATASETS = ("cifar10", "cifar100", "svhn", "tiny-imagenet")
_ATTACKS = ("clean", "fgsm", "pgd", "cw", "autoattack")
_USUAL_EPS = {"linf": 8 / 255, "l2": 128 / 255}
_USUAL_STEPS = {"clean": 0, "fgsm": 1, "pgd": 20, "cw": 40, "autoattack": 100}

#: Numbers of :meth:`Context.vector`.
CONTEXT = 4 + len(_DATASETS) + 1 + 2 + len(_ATTACKS) + 1 + 2


@dataclasses.dataclass(frozen=True)
class Context:
    """What a policy knows of a task.

    Parameters
    ----------
    task
        Its data set, attack, threat and budget.
    classes
        Number of classes.
    resolution
        Height of a picture in pixels.
    teacher
        Cost of the teacher's network; None where costs are not known.
    lipschitz
        Local Lipschitz value of the teacher (:func:`nni_robust.analysis.lipschitz_value`); None
        where it is not known or not used.
    """

    task: Task
    classes: int
    resolution: int
    teacher: Cost | None = None
    lipschitz: float | None = None

    def vector(self, cost: Cost | None = None) -> Tensor:
        """Numbers of the task and of the network that is to be changed.

        Parameters
        ----------
        cost
            Of that network; None is the teacher's.

        Returns
        -------
        Tensor
            (CONTEXT,), float32: Lipschitz value as log1p/4; cost over the teacher's, over the
            budget (at most 8), the budget over 40 G; data set; log(classes)/log(1000); resolution
            over 64; attack; eps over 8/255 (L2: 128/255); log2(1 + steps)/8.
        """
        budget = self.task.budget
        now = cost or self.teacher
        parts = [
            0.0 if self.lipschitz is None else math.log1p(max(self.lipschitz, 0.0)) / 4,
            now.macs / self.teacher.macs if now and self.teacher and self.teacher.macs else 0.0,
            min(budget.excess(now), 8.0) if budget is not None and now is not None else 0.0,
            (budget.macs or 0.0) / 40e9 if budget is not None else 0.0,
        ]
        name = self.task.dataset.partition(":")[0]
        parts += _one_hot(name, _DATASETS)
        parts += [math.log(max(self.classes, 1)) / math.log(1000), self.resolution / 64]
        kind, steps = attack_kind(self.task.attack)
        parts += _one_hot(kind, _ATTACKS)
        threat = self.task.threat
        eps = 0.0 if kind == "clean" else threat.eps / _USUAL_EPS.get(threat.norm, 1.0)
        parts += [eps, math.log2(1 + steps) / 8]
        return torch.tensor(parts, dtype=torch.float32)


def attack_kind(attack: str | Mapping[str, Any] | None) -> tuple[str, int]:
    """Family and number of steps of an attack: ``"pgd20"`` is ``("pgd", 20)``; None counts so."""
    if attack is None:
        return "pgd", _USUAL_STEPS["pgd"]
    name = str(attack.get("name", "other") if isinstance(attack, Mapping) else attack).lower()
    match = re.fullmatch(r"(.*?)-?(\d*)", name)
    kind = match[1] if match else name
    steps = int(match[2]) if match and match[2] else _USUAL_STEPS.get(kind, 20)
    if isinstance(attack, Mapping):
        steps = int(attack.get("steps", steps))
    return kind, steps


def _one_hot(name: str, known: Sequence[str]) -> list[float]:
    """One place for each known name, and a last one for any other."""
    return [float(name == k) for k in known] + [float(name not in known)]


def features(
    choices: Sequence[Choice], sample: Mapping[str, Any], roles: Sequence[str], stem_stride: int = 1
) -> Tensor:
    """The network to be changed, position by position.

    Parameters
    ----------
    choices
        Of the space.
    sample
        Its values.
    roles
        Names of the roles where choices are grouped by stage, as the policy knows them; empty where
        each is a position.
    stem_stride
        Of the network, which is not searched.

    Returns
    -------
    Tensor
        (positions, F), float32. By stage: stem stride - 1, then for each role the number over 16,
        or the place among the values (basic 0, robust 1). Otherwise: the position over the number
        of positions, log2(number of values)/4, whether ordered, share of the largest number, and
        the largest prior.
    """
    positions = 1 + max(choice.position for choice in choices)
    rows = torch.zeros(positions, 1 + len(roles) if roles else 5)
    for choice in choices:
        value = sample[choice.label]
        if roles:
            rows[choice.position, 0] = stem_stride - 1
            place = 1 + roles.index(choice.role)
            rows[choice.position, place] = (
                float(value) / 16
                if choice.ordered
                else choice.values.index(value) / max(len(choice.values) - 1, 1)
            )
            continue
        share = float(value) / (choice.values[-1] or 1) if choice.ordered else 0.0
        rows[choice.position] = torch.tensor(
            [
                choice.position / positions,
                math.log2(len(choice.values)) / 4,
                float(choice.ordered),
                share,
                max(choice.prior),
            ]
        )
    return rows
