"""How many pictures a network classifies correctly, clean and under attack.

Cheap first: only pictures that are classified correctly are attacked (the others count as broken),
and our own attacks leave a picture alone as soon as it is misclassified. What an attack returns is
classified again, so that every break is verified. Random starts depend on the seed and the place of
the picture in the data, not on its batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_robust.attacks import (
    Attack,
    AttackSpec,
    NonFiniteOutput,
    Victim,
    attack_from_spec,
    undisturbed,
)
from nni_robust.attacks._base import check_pictures
from nni_robust.config import parse
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["AttackResult", "Evaluation", "NonFiniteOutput", "Progress", "eps_curve", "evaluate"]

#: Called with pictures done, pictures in all (None where the data does not say) and the stage.
Progress = Callable[[int, int | None, str], None]


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What one attack left over.

    Parameters
    ----------
    attack
        The attack.
    correct
        (N,), bool, on the CPU: pictures classified correctly, clean and after the attack.
    seconds
        Wall time of the attack.
    """

    attack: Attack
    correct: Tensor
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of all pictures that stay correct, in [0, 1]."""
        return _share(self.correct)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Clean and robust accuracy of one network.

    Parameters
    ----------
    clean_correct
        (N,), bool, on the CPU: pictures classified correctly as they are.
    attacks
        Results by the attack's key, such as ``"pgd20@8/255"``, in the order asked for.
    seconds
        Wall time of all.
    """

    clean_correct: Tensor
    attacks: dict[str, AttackResult]
    seconds: float

    @property
    def n(self) -> int:
        """Number of pictures."""
        return len(self.clean_correct)

    @property
    def clean(self) -> float:
        """Accuracy without an attack, in [0, 1]."""
        return _share(self.clean_correct)

    @property
    def worst(self) -> float:
        """Share of pictures that every attack leaves correct, in [0, 1]."""
        correct = self.clean_correct
        for result in self.attacks.values():
            correct = correct & result.correct
        return _share(correct)

    def metrics(self) -> dict[str, float]:
        """``{"clean": 0.84, "pgd20@8/255": 0.51, …}``, accuracies in [0, 1]."""
        return {"clean": self.clean, **{key: r.accuracy for key, r in self.attacks.items()}}


def evaluate(
    model: nn.Module,
    data: Any,
    attacks: AttackSpec | Iterable[AttackSpec] = ("fgsm", "pgd20"),
    *,
    threat: ThreatModel | Mapping[str, Any] | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure clean and robust accuracy; the network is left exactly as it was.

    Parameters
    ----------
    model
        Network from pictures (N, C, H, W) in [0, 1] to logits (N, K).
    data
        A pair of tensors (pictures, labels); an object with ``batches(batch_size, device=…)``, such
        as :class:`nni_robust.data.ImageSet`; or an iterable of pairs, such as a data loader.
        Pictures are converted to the network's float type.
    attacks
        What :func:`~nni_robust.attacks.attack_from_spec` understands. Ours leave a picture alone at
        its first misclassified iterate unless the mapping says ``early_stop: false``; an
        :class:`~nni_robust.attacks.Attack` object is used as it is. Empty measures clean accuracy.
    threat
        Ball for attacks that name none; None is L∞ 8/255.
    batch_size
        Pictures in memory at a time.
    device
        Where the network is; None asks its first parameter. The network is not moved.
    limit
        Use the first so many pictures; None is all.
    seed
        Of random starts. Results of our attacks depend on it and not on the batch size, up to
        the rounding of the network's own arithmetic; torchattacks draws by batch.
    progress
        Called after each batch of each stage (``"clean"`` and the attacks' keys).

    Raises
    ------
    UserError
        On unusable data, no pictures, an unknown or targeted attack, two attacks of one name.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    started = time.perf_counter()
    made = _make_attacks(attacks, _as_threat(threat))
    clean: list[Tensor] = []
    correct: dict[str, list[Tensor]] = {attack.key: [] for attack in made}
    seconds = dict.fromkeys(correct, 0.0)
    with undisturbed(model):
        for batch in _batches(model, data, batch_size, device, limit):
            good = _is_correct(model, batch.x, batch.y, batch.largest_label)
            clean.append(good.cpu())
            batch.report(progress, "clean")
            left = good.nonzero().flatten()
            for attack in made:
                began = time.perf_counter()
                still = good.clone()
                still[left] = _survives(model, attack, batch, left, seed)
                correct[attack.key].append(still.cpu())
                seconds[attack.key] += time.perf_counter() - began
                batch.report(progress, attack.key)
    results = {a.key: AttackResult(a, torch.cat(correct[a.key]), seconds[a.key]) for a in made}
    return Evaluation(torch.cat(clean), results, time.perf_counter() - started)


def eps_curve(
    model: nn.Module,
    data: Any,
    eps_values: Iterable[float | str],
    attack: str | Mapping[str, Any] = "pgd20",
    *,
    norm: Literal["linf", "l2"] = "linf",
    batch_size: int = 256,
    device: torch.device | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[float, float]]:
    """Accuracy at several strengths, weakest first.

    A picture that is broken at one strength counts as broken at every larger one, as what broke it
    is inside the larger ball too, and is not attacked again. The curve therefore never rises, and
    one pass over the data costs less than an attack for each strength.

    Parameters
    ----------
    eps_values
        Radii in pixel units, any order; 0 is the clean accuracy.
    attack
        Name or mapping; its default step size follows the radius.
    model, data, norm, batch_size, device, limit, seed, progress
        As in :func:`evaluate`.

    Returns
    -------
    list
        Pairs (eps, accuracy in [0, 1]) with rising eps.

    Raises
    ------
    UserError, NonFiniteOutput
        As :func:`evaluate`.
    """
    if not isinstance(attack, (str, Mapping)) or (
        not isinstance(attack, str) and {"eps", "norm"} & attack.keys()
    ):
        raise UserError("eps_curve takes the attack as a name or a mapping without eps and norm")
    threats = {t.eps: t for t in (_as_threat({"norm": norm, "eps": eps}) for eps in eps_values)}
    if not threats:
        raise UserError("eps_curve needs at least one eps")
    made = [_make_attacks(attack, threats[eps])[0] for eps in sorted(threats)]
    survivors, n = dict.fromkeys(sorted(threats), 0), 0
    with undisturbed(model):
        for batch in _batches(model, data, batch_size, device, limit):
            left = _is_correct(model, batch.x, batch.y, batch.largest_label).nonzero().flatten()
            n += len(batch.y)
            batch.report(progress, "clean")
            for a in made:
                left = left[_survives(model, a, batch, left, seed)]
                survivors[a.threat.eps] += len(left)
                batch.report(progress, a.key)
    return [(eps, count / n) for eps, count in survivors.items()]


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Pictures on the network's device, with the place of the first in the data."""

    x: Tensor
    y: Tensor
    largest_label: int
    first: int
    total: int | None

    def report(self, progress: Progress | None, stage: str) -> None:
        if progress is not None:
            progress(self.first + len(self.y), self.total, stage)


def _share(correct: Tensor) -> float:
    return int(correct.sum()) / len(correct)


def _as_threat(threat: ThreatModel | Mapping[str, Any] | None) -> ThreatModel:
    return parse(ThreatModel, threat, "threat")


def _make_attacks(specs: AttackSpec | Iterable[AttackSpec], threat: ThreatModel) -> list[Attack]:
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


@torch.no_grad()
def _is_correct(model: nn.Module, x: Tensor, y: Tensor, largest_label: int = -1) -> Tensor:
    """(N,), bool. The logits must be finite: comparing with NaN would look like a break."""
    logits = Victim(model, x.dtype, largest_label)(x)
    if not torch.isfinite(logits).all():
        raise NonFiniteOutput("the network's output is NaN or infinite")
    return logits.argmax(1) == y


def _survives(model: nn.Module, attack: Attack, batch: _Batch, rows: Tensor, seed: int) -> Tensor:
    """(len(rows),), bool: which of some correctly classified pictures stay correct."""
    if len(rows) == 0 or attack.threat.eps == 0:
        return torch.ones_like(rows, dtype=torch.bool)
    x, y = batch.x[rows], batch.y[rows]
    adv = attack(model, x, y, seed=seed, index=rows + batch.first)
    return _is_correct(model, adv, y)


def _batches(
    model: nn.Module,
    data: Any,
    batch_size: int,
    device: torch.device | str | None,
    limit: int | None,
) -> Iterator[_Batch]:
    """The data in checked batches on the network's device, up to the limit."""
    for key, value in (("batch_size", batch_size), ("limit", 1 if limit is None else limit)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{key}: {value!r} is not allowed; a whole number >= 1 is")
    place, dtype = _placement(model, device)
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
                yield _Batch(x_part, y_part.to(place), largest, done, total)
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


def _placement(
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
