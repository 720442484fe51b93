"""How many pictures a network classifies correctly, clean and under attack.

Cheap first: only pictures that are classified correctly are attacked (the others count as broken),
and our own attacks leave a picture alone as soon as it is misclassified. What an attack returns is
classified again, so that every break is verified. Random starts depend on the seed and the place of
the picture in the data, not on its batch. Every result carries the checks that say whether it can
be believed (:mod:`nni_robust.reliability`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nni_robust._keeping import Keep, Keeper
from nni_robust._pictures import Progress, as_threat, batches, is_correct, survives
from nni_robust.adversarial import AdversarialExamples
from nni_robust.attacks import (
    Attack,
    AttackSpec,
    NonFiniteOutput,
    Precision,
    attack_from_spec,
    undisturbed,
)
from nni_robust.errors import UserError
from nni_robust.reliability import Monitor, Outcome, Reliability
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.threat import ThreatModel

__all__ = [
    "AttackResult",
    "Evaluation",
    "NonFiniteOutput",
    "Progress",
    "eps_curve",
    "evaluate",
    "steps_curve",
]


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
    examples
        Adversarial pictures, where they were asked for.
    """

    attack: Attack
    correct: Tensor
    seconds: float
    examples: AdversarialExamples | None = None

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
    reliability
        Which checks of these figures ran, and which failed.
    """

    clean_correct: Tensor
    attacks: dict[str, AttackResult]
    seconds: float
    reliability: Reliability

    def __post_init__(self) -> None:
        if not isinstance(self.reliability, Reliability):
            raise TypeError("an Evaluation needs its Reliability")

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
    thorough: bool = False,
    keep: Keep | None = None,
    precision: Precision | None = None,
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
    thorough
        Also run the checks that cost further attacks (at a very large eps, and with twice the
        steps), on the first 256 pictures. The others always run; they cost about as much as 2 % of
        PGD-20.
    keep
        Keep so many adversarial pictures of each attack (the first of the data), or ``"all"`` of
        them, as :attr:`AttackResult.examples`; then every break is verified in float32 on what
        would be written down (:mod:`nni_robust.adversarial`), and one that does not hold is no
        break. They stay in memory on the CPU.
    precision
        ``"bf16"`` runs our gradient attacks under bfloat16 autocast, others as they are; every
        break is confirmed by the network as it is. None leaves it to each attack.

    Raises
    ------
    UserError
        On unusable data, no pictures, an unknown or targeted attack, two attacks of one name.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    started = time.perf_counter()
    made = _make_attacks(attacks, as_threat(threat))
    if precision is not None:
        if precision not in get_args(Precision):
            raise UserError(f"precision: {precision!r} is not allowed; float32 or bf16 is")
        made = [attack.in_precision(precision) for attack in made]
    clean: list[Tensor] = []
    correct: dict[str, list[Tensor]] = {attack.key: [] for attack in made}
    seconds = dict.fromkeys(correct, 0.0)
    monitor = Monitor(model, made, seed=seed, thorough=thorough)
    names = getattr(data, "class_names", ())
    keeper = None if keep is None else Keeper(model, keep, seed=seed, classes=names)
    with undisturbed(model):
        for batch in batches(model, data, batch_size, device, limit):
            good = is_correct(model, batch.x, batch.y, batch.largest_label)
            clean.append(good.cpu())
            monitor.clean(batch.x, batch.y, good, batch.first, batch.total)
            batch.report(progress, "clean")
            left = good.nonzero().flatten()
            for attack in made:
                began = time.perf_counter()
                still = good.clone()
                still[left] = survives(model, attack, batch, left, seed, monitor, keeper)
                correct[attack.key].append(still.cpu())
                seconds[attack.key] += time.perf_counter() - began
                batch.report(progress, attack.key)
        results = {a.key: AttackResult(a, torch.cat(correct[a.key]), seconds[a.key]) for a in made}
        if keeper is not None:
            results = {
                key: dataclasses.replace(
                    one, examples=keeper.examples(one.attack, len(one.correct))
                )
                for key, one in results.items()
            }
        outcomes = [Outcome(result.attack, result.correct) for result in results.values()]
        reliability = monitor.finish(outcomes, batch_size=batch_size)
    return Evaluation(torch.cat(clean), results, time.perf_counter() - started, reliability)


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
    """Accuracy at several strengths, weakest first: the curve of :func:`evaluate_spectrum`.

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
        Pairs (eps, accuracy in [0, 1]) with rising eps; the curve never rises.

    Raises
    ------
    UserError, NonFiniteOutput
        As :func:`evaluate`.
    """
    return evaluate_spectrum(
        model,
        data,
        eps_values,
        attack,
        norm=norm,
        batch_size=batch_size,
        device=device,
        limit=limit,
        seed=seed,
        progress=progress,
    ).curve()


def steps_curve(
    model: nn.Module,
    data: Any,
    steps: Iterable[int] = (7, 10, 20, 40, 100),
    attack: str | Mapping[str, Any] = "pgd",
    *,
    threat: ThreatModel | Mapping[str, Any] | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[int, float]]:
    """Accuracy under one attack with several numbers of steps, fewest first.

    A robust network's curve is flat at the end; one that still falls says that the attack was too
    short (RobNet's figure 10 has PGD from 7 to 1,000 steps).

    A picture that is broken by few steps counts as broken by more and is not attacked again, so the
    curve never rises. For PGD and MI-FGSM nothing is lost by that: their step size does not depend
    on the number of steps, so a longer run passes through the pictures of the shorter one, and the
    values are those of :func:`evaluate` with each number.

    Parameters
    ----------
    steps
        Numbers of steps, any order.
    attack
        Name without a number, or mapping without `steps`, of an attack that has steps.
    model, data, threat, batch_size, device, limit, seed, progress
        As in :func:`evaluate`.

    Returns
    -------
    list
        Pairs (steps, accuracy in [0, 1]) with rising steps.

    Raises
    ------
    UserError, NonFiniteOutput
        As :func:`evaluate`.
    """
    if not isinstance(attack, (str, Mapping)):
        raise UserError("steps_curve takes the attack as a name or a mapping without steps")
    spec: dict[str, Any] = {"name": attack} if isinstance(attack, str) else dict(attack)
    numbers = list(steps)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UserError(f"steps: {number!r} is not allowed; a whole number >= 1 is")
    if not numbers or "steps" in spec:
        raise UserError("steps_curve needs at least one number of steps, and none in the attack")
    ball, rising = as_threat(threat), sorted(set(numbers))
    specs: list[dict[str, Any]] = [{**spec, "steps": number} for number in rising]
    made = [_make_attacks(s, ball)[0] for s in specs]
    counted = _curve(model, data, made, batch_size, device, limit, seed, progress)
    return list(zip(rising, counted, strict=True))


def _curve(
    model: nn.Module,
    data: Any,
    attacks: list[Attack],
    batch_size: int,
    device: torch.device | str | None,
    limit: int | None,
    seed: int,
    progress: Progress | None,
) -> list[float]:
    """Share of pictures that withstand each attack and all those before it."""
    survivors, n = [0] * len(attacks), 0
    with undisturbed(model):
        for batch in batches(model, data, batch_size, device, limit):
            left = is_correct(model, batch.x, batch.y, batch.largest_label).nonzero().flatten()
            n += len(batch.y)
            batch.report(progress, "clean")
            for number, attack in enumerate(attacks):
                left = left[survives(model, attack, batch, left, seed)]
                survivors[number] += len(left)
                batch.report(progress, attack.key)
    return [count / n for count in survivors]


def _share(correct: Tensor) -> float:
    return int(correct.sum()) / len(correct)


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
