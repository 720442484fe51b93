"""Checked pictures in batches on the network's device, and which of them it gets right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust._keeping import Keeper
from nni_robust._resuming import SuiteProgress
from nni_robust.attacks import Attack, AttackSpec, NonFiniteOutput, Victim, attack_from_spec
from nni_robust.attacks._base import check_pictures
from nni_robust.attacks._progress import BatchProgress
from nni_robust.config import parse
from nni_robust.errors import UserError
from nni_robust.reliability import HALVES, Monitor, outside_ball
from nni_robust.threat import ThreatModel

__all__ = [
    "Batch",
    "Progress",
    "as_threat",
    "batches",
    "in_half",
    "is_correct",
    "make_attacks",
    "placement",
    "survives",
]

#: Called with pictures done, pictures in all (None where the data does not say) and the stage.
Progress = Callable[[int, int | None, str], None]


# What torch's convolutions and linear layers say of pictures of another shape.
_OTHER_SHAPE = ("expected input[", "shapes cannot be multiplied")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures on the network's device, with the place of the first in the data."""

    x: Tensor
    y: Tensor
    largest_label: int
    first: int
    total: int | None

    def report(self, progress: Progress | None, stage: str) -> None:
        if progress is not None:
            progress(self.first + len(self.y), self.total, stage)


def as_threat(threat: ThreatModel | Mapping[str, Any] | None) -> ThreatModel:
    return parse(ThreatModel, threat, "threat")


@torch.no_grad()
def is_correct(model: nn.Module, x: Tensor, y: Tensor, largest_label: int = -1) -> Tensor:
    """(N,), bool. The logits must be finite: comparing with NaN would look like a break.

    Raises
    ------
    UserError
        If the network is for pictures of another shape.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    try:
        logits = Victim(model, x.dtype, largest_label)(x)
    except RuntimeError as e:
        told = str(e).splitlines()[0] if str(e) else ""
        if not any(sign in told for sign in _OTHER_SHAPE):
            raise
        shape = "×".join(map(str, x.shape[1:]))
        raise UserError(f"the network does not take pictures of {shape}: {told}") from e
    if not torch.isfinite(logits).all():
        raise NonFiniteOutput("the network's output is NaN or infinite")
    return logits.argmax(1) == y


def survives(
    model: nn.Module,
    attack: Attack,
    batch: Batch,
    rows: Tensor,
    seed: int,
    monitor: Monitor | None = None,
    keeper: Keeper | None = None,
    suite: SuiteProgress | None = None,
) -> Tensor:
    """(len(rows),), bool: which of some correctly classified pictures stay correct.

    With a keeper, only breaks that hold in float32 count. With a suite, only pictures that it does
    not know are attacked.
    """
    if len(rows) == 0 or attack.threat.eps == 0:
        return torch.ones_like(rows, dtype=torch.bool)
    x, y, index = batch.x[rows], batch.y[rows], rows + batch.first
    progress = None if suite is None else suite.batch(attack, x, y, index)
    outside = None
    if progress is None:
        adv = attack(model, x, y, seed=seed, index=index)
        correct = is_correct(model, adv, y)
    else:
        adv, broken, outside = _resumed(
            progress, model, attack, (x, y, index), seed, pictures=keeper is not None
        )
        correct = broken.logical_not()
    if monitor is not None:
        monitor.attacked(attack, x, adv, y, correct, outside)
    if keeper is not None:
        return keeper.attacked(attack, x, adv, y, index, correct)
    return correct


def in_half(x: Tensor) -> bool:
    """Whether checks will look at broken pictures, as the network computes in half precision."""
    return x.dtype in HALVES or torch.is_autocast_enabled(x.device.type)


def _resumed(
    progress: BatchProgress,
    model: nn.Module,
    attack: Attack,
    batch: tuple[Tensor, Tensor, Tensor],
    seed: int,
    *,
    pictures: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attack what is not known yet and write it down: pictures, which are broken, and outside.

    Without `pictures`, broken ones stay clean where they are known from before.
    """
    x, y, index = batch
    pictures = pictures or in_half(x)

    def attacked(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clean, labels = x[rows], y[rows]
        adv = attack(model, clean, labels, seed=seed, index=index[rows])
        broken = is_correct(model, adv, labels).logical_not()
        return adv, broken, outside_ball(attack, clean, adv)

    known = progress.completed(attacked, pictures=pictures)
    return known.adv, known.broken, known.outside


def batches(
    model: nn.Module,
    data: Any,
    batch_size: int,
    device: torch.device | str | None,
    limit: int | None,
) -> Iterator[Batch]:
    """The data in checked batches on the network's device, up to the limit."""
    for key, value in (("batch_size", batch_size), ("limit", 1 if limit is None else limit)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{key}: {value!r} is not allowed; a whole number >= 1 is")
    place, dtype = placement(model, device)
    pairs, total = _pairs(data, batch_size, place)
    if limit is not None:
        total = limit if total is None else min(total, limit)
    done = 0
    for pair in pairs:
        if not _is_pair(pair):
            raise UserError("each batch of data must be a pair of tensors (pictures, labels)")
        x, y = pair if limit is None else (part[: limit - done] for part in pair)
        y, largest = check_pictures(x, y)
        for x_part, y_part in zip(
            torch.split(x, batch_size), torch.split(y, batch_size), strict=True
        ):
            if len(x_part):
                x_part = x_part.to(place, dtype or x_part.dtype)
                yield Batch(x_part, y_part.to(place), largest, done, total)
                done += len(x_part)
        if done == limit:
            return
    if done == 0:
        raise UserError("there are no pictures to evaluate")


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(part, Tensor) for part in value)
    )


def placement(
    model: nn.Module, device: torch.device | str | None
) -> tuple[torch.device, torch.dtype | None]:
    """Where the network is and what type of pictures it takes."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    place = torch.device("cpu") if first is None else first.device
    if device is not None:
        try:
            wanted = torch.device(device)
        except RuntimeError:
            raise UserError(f"device: {device!r} is not allowed; 'cpu' or 'cuda:0' is") from None
        if first is None:
            place = wanted
        elif wanted.type != place.type or wanted.index not in (None, place.index):
            raise UserError(f"device: the network is on {place}, not on {wanted}; move it first")
    return place, None if first is None else first.dtype


def _pairs(
    data: Any, batch_size: int, device: torch.device
) -> tuple[Iterator[Sequence[Tensor]], int | None]:
    """Pairs of pictures and labels, and the number of pictures where it is known."""
    if _is_pair(data):
        return iter([data]), len(data[0])
    if hasattr(data, "batches"):
        return iter(data.batches(batch_size, device=device)), len(data)
    if isinstance(data, Iterable) and not isinstance(data, (str, Tensor, Mapping)):
        return iter(data), None
    raise UserError(
        "data must be a pair of tensors, an object with batches(), or an iterable of pairs, "
        f"not {type(data).__name__}"
    )


def make_attacks(specs: AttackSpec | Iterable[AttackSpec], threat: ThreatModel) -> list[Attack]:
    """The attacks, ours with early exit, each with a name of its own."""
    if isinstance(specs, (str, Mapping, Attack)):
        specs = (specs,)
    if not isinstance(specs, Iterable):
        raise UserError(f"attacks: {specs!r} is not allowed; a list of attacks is")
    made: dict[str, Attack] = {}
    for spec in specs:
        attack = attack_from_spec(spec, threat)
        says = isinstance(spec, Attack) or (isinstance(spec, Mapping) and "early_stop" in spec)
        attack = attack if says else attack.with_early_exit()
        if attack.targeted:
            raise UserError(
                f"attack '{attack.key}' is targeted; accuracy is measured with untargeted attacks"
            )
        if attack.key in made:
            raise UserError(f"two attacks are called '{attack.key}'; give one another label")
        made[attack.key] = attack
    return list(made.values())
