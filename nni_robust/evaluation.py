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
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from nni_robust._keeping import Keep, Keeper
from nni_robust._pictures import (
    Progress,
    as_threat,
    batches,
    is_correct,
    make_attacks,
    survives,
)
from nni_robust._resuming import EvaluationFolder, SuiteProgress, attack_text, progress_folder
from nni_robust.adversarial import AdversarialExamples
from nni_robust.attacks import (
    Attack,
    AttackSpec,
    NonFiniteOutput,
    Precision,
    undisturbed,
)
from nni_robust.curves import eps_curve, steps_curve
from nni_robust.errors import UserError
from nni_robust.reliability import Check, Monitor, Outcome, Reliability, need_reliability
from nni_robust.threat import ThreatModel

__all__ = [
    "AttackResult",
    "Evaluation",
    "NonFiniteOutput",
    "Progress",
    "eps_curve",
    "evaluate",
    "progress_folder",
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
    reliability
        That of the whole evaluation: checks compare its attacks with each other.
    examples
        Adversarial pictures, where they were asked for.
    """

    attack: Attack
    correct: Tensor
    seconds: float
    reliability: Reliability
    examples: AdversarialExamples | None = None

    def __post_init__(self) -> None:
        need_reliability(self)

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
        need_reliability(self)

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

    def with_checks(self, checks: Iterable[Check]) -> Evaluation:
        """The same with other outcomes of some checks, such as one on the network's training."""
        found = self.reliability.replaced(checks)
        attacks = {
            key: dataclasses.replace(one, reliability=found) for key, one in self.attacks.items()
        }
        return dataclasses.replace(self, attacks=attacks, reliability=found)

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
    folder: str | Path | None = None,
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
    folder
        Where to keep which pictures each attack has had and what came of it, written batch by
        batch: the same call goes on after a kill and repeats at most one batch of each attack,
        whatever the batches. Further attacks, pictures and `keep` may be asked for later.
        Adversarial pictures lie there with `keep`, for networks in half precision, and of
        AutoAttack. Clean accuracy and the checks of the network are measured anew; `seconds` are
        those of this call.

    Raises
    ------
    UserError
        On unusable data, no pictures, an unknown or targeted attack, two attacks of one name; a
        folder in use, or with the results of another network, threat, seed, other settings or
        pictures.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    started = time.perf_counter()
    ball = as_threat(threat)
    made = make_attacks(attacks, ball)
    if precision is not None:
        if precision not in get_args(Precision):
            raise UserError(f"precision: {precision!r} is not allowed; float32 or bf16 is")
        made = [attack.in_precision(precision) for attack in made]
    with ExitStack() as stack:
        home = suite = None
        if folder is not None:
            parts = {attack.key: attack_text(attack) for attack in made}
            home = stack.enter_context(EvaluationFolder(folder, model, parts, seed, ball))
            suite = SuiteProgress(home, [*parts], made)
            made = suite.attacks
        clean: list[Tensor] = []
        correct: dict[str, list[Tensor]] = {attack.key: [] for attack in made}
        seconds = dict.fromkeys(correct, 0.0)
        monitor = Monitor(model, made, seed=seed, thorough=thorough, home=home)
        names = getattr(data, "class_names", ())
        keeper = None if keep is None else Keeper(model, keep, seed=seed, classes=names)
        stack.enter_context(undisturbed(model))
        for batch in batches(model, data, batch_size, device, limit):
            good = is_correct(model, batch.x, batch.y, batch.largest_label)
            clean.append(good.cpu())
            monitor.clean(batch.x, batch.y, good, batch.first, batch.total)
            batch.report(progress, "clean")
            left = good.nonzero().flatten()
            for attack in made:
                began = time.perf_counter()
                still = good.clone()
                still[left] = survives(model, attack, batch, left, seed, monitor, keeper, suite)
                correct[attack.key].append(still.cpu())
                seconds[attack.key] += time.perf_counter() - began
                batch.report(progress, attack.key)
        left_over = {key: torch.cat(parts) for key, parts in correct.items()}
        outcomes = [Outcome(attack, left_over[attack.key]) for attack in made]
        reliability = monitor.finish(outcomes, batch_size=batch_size)
        results = {}
        for attack in made:
            key, n = attack.key, len(left_over[attack.key])
            examples = None if keeper is None else keeper.examples(attack, n)
            results[key] = AttackResult(attack, left_over[key], seconds[key], reliability, examples)
    return Evaluation(torch.cat(clean), results, time.perf_counter() - started, reliability)


def _share(correct: Tensor) -> float:
    return int(correct.sum()) / len(correct)
