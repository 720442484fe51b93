"""Is a noise estimator worth its price? Estimated against real noise, on trained networks.

The protocol follows `test_AN_estimator` of the Wsr-NAS repository: networks are trained
adversarially; an estimator learns from the noises of some of them and is tested on pictures it has
not seen, on a network it learnt from and on one that it did not. Asked for are the strengths
between and above the attacked ones. Beside the two networks of the paper stand two estimators that
learn nothing, and the attack itself, continued for three steps from the strength before
(``"warm attack"``), which is what an estimator has to compete with in a search.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.architecture import Architecture
from nni_robust.attacks import undisturbed
from nni_robust.bench._rows import Row, machine
from nni_robust.config import parse
from nni_robust.data import DataSplits, load_dataset
from nni_robust.data.seeding import derive_seed
from nni_robust.errors import UserError
from nni_robust.noise import (
    NOISE_ATTACK,
    EstimatorTrainer,
    NoiseEstimator,
    NoiseQuality,
    estimate_adversarial,
    list_estimators,
    make_estimator,
    measure_quality,
)
from nni_robust.spectrum import SEARCH_STRENGTHS, spectrum_losses
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, train

__all__ = ["REAL", "WANTED", "EstimatorBench", "default_networks", "run_estimator_bench"]

#: Strengths that are attacked, and those that are estimated; the last lies outside.
REAL, WANTED = SEARCH_STRENGTHS[::2], SEARCH_STRENGTHS[1::2]
_WARM_STEPS = 3


@dataclasses.dataclass(frozen=True)
class EstimatorBench:
    """Size of the benchmark.

    Parameters
    ----------
    estimators
        Names (:func:`nni_robust.noise.list_estimators`).
    dataset, root
        As in :func:`nni_robust.data.load_dataset`.
    seeds
        Repetitions: each trains networks and estimators anew.
    epochs
        Of the networks' adversarial training (PGD-5, eps 0.06).
    rounds
        How often the noise memory is filled anew, with one network after the other.
    rounds_epochs
        Passes over the memory in each round.
    batches
        Batches of 64 training pictures that are attacked in each round.
    pictures
        Held-out pictures to compare on.
    """

    estimators: tuple[str, ...] = ("scale", "interpolate", "basic", "plus")
    dataset: str = "digits"
    root: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 8
    rounds: int = 4
    rounds_epochs: int = 3
    batches: int = 5
    pictures: int = 256

    def __post_init__(self) -> None:
        for name in self.estimators:
            if name not in list_estimators():
                known = ", ".join(list_estimators())
                raise UserError(f"estimators: '{name}' is not allowed; allowed: {known}")
        if not self.estimators or not self.seeds:
            raise UserError("the benchmark needs at least one estimator and one seed")
        for key in ("epochs", "rounds", "rounds_epochs", "batches", "pictures"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; 1 or more is")

    @classmethod
    def quick(cls, **changes: Any) -> EstimatorBench:
        """A size that shows that everything works, and no figure to trust."""
        small = {"epochs": 2, "rounds": 2, "rounds_epochs": 1, "batches": 2, "pictures": 64}
        return cls(**{"seeds": (0,), **small, **changes})


def default_networks() -> list[Architecture]:
    """Three small wide residual networks; the last is the one that no estimator learns from."""
    settings = {"depths": 2, "widths": 2, "stem_channels": 8, "base_channels": [8, 16, 32]}
    return [
        Architecture.from_dict(
            {
                "format": "nni-robust/architecture/1",
                "name": name,
                "space": "wide-resnet",
                "space_args": settings,
                "code": code,
                "num_classes": 10,
                "input_shape": [3, 8, 8],
                "provenance": {"kind": "found", "source": "chosen by hand for benchmarks"},
            }
        )
        for name, code in (
            ("wrn-a", "1x1 1x1 1x1"),
            ("wrn-b", "1x2 1x2 1x1"),
            ("wrn-held-out", "2x1 2x1 1x2"),
        )
    ]


def run_estimator_bench(
    settings: EstimatorBench | None = None,
    networks: Sequence[Architecture] | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Train networks and estimators, and compare estimated with real noise.

    Parameters
    ----------
    settings
        Size; None is the default one.
    networks
        At least two; the last is held out. None is :func:`default_networks`.
    say
        Told what is being done.

    Returns
    -------
    list
        One row per seed, method, network and strength. ``passes`` are forward-backward passes per
        picture to get noise at all strengths (`REAL` and `WANTED`); ``training_passes`` and
        ``training_seconds`` are what the estimator's training cost in all; ``seconds`` is the time
        to get the noise at the wanted strengths, per 1,000 pictures, without the sources' attacks.

    Raises
    ------
    UserError
        On too few networks or what cannot be trained on the data.
    """
    settings = settings or EstimatorBench()
    chosen = list(default_networks() if networks is None else networks)
    if len(chosen) < 2:
        raise UserError("the benchmark needs two networks: one to learn from, one held out")
    tell = say or (lambda _: None)
    data = load_dataset(settings.dataset, root=settings.root)
    x, y = next(iter(data.validation.batches(settings.pictures)))
    where = machine()
    rows: list[Row] = []
    for seed in settings.seeds:
        tested = []
        for number, architecture in enumerate(chosen):
            tell(f"seed {seed}: training {architecture.name}")
            network = _trained(architecture, data, settings, seed)
            tested.append(_Victim(architecture.name, number < len(chosen) - 1, network, x, y))
        for victim in tested:
            rows += victim.warm(seed)
        for name in settings.estimators:
            tell(f"seed {seed}: estimator {name}")
            estimator = make_estimator(name, data.input_shape, seed=seed)
            cost = _teach(estimator, [v.network for v in tested if v.seen], data, settings, seed)
            for victim in tested:
                rows += victim.estimated(estimator, cost, seed)
    return [{**row, "dataset": data.name, **where} for row in rows]


def _trained(
    architecture: Architecture, data: DataSplits, settings: EstimatorBench, seed: int
) -> nn.Module:
    torch.manual_seed(derive_seed(seed, architecture.name) % 2**32)
    network = architecture.build(data.num_classes, pretrained=False)
    recipe = parse(
        Recipe,
        {
            "epochs": settings.epochs,
            "batch_size": 64,
            "lr": 0.05,
            "attack": {"steps": 5},
            "validation_attack": None,
        },
        "recipe",
    )
    return train(network, data, recipe, ThreatModel("linf", REAL[1]), seed=seed).model.eval()


def _teach(
    estimator: NoiseEstimator,
    networks: list[nn.Module],
    data: DataSplits,
    settings: EstimatorBench,
    seed: int,
) -> Row:
    """Train an estimator on the noises of one network after the other; returns the cost."""
    began, passes = time.perf_counter(), 0
    steps = max(settings.rounds * settings.rounds_epochs * 10, 2)
    trainer = EstimatorTrainer(estimator, {"steps": steps, "warmup": steps // 10}, seed=seed)
    if estimator.learns:
        for number in range(settings.rounds):
            batches = _some(data, settings.batches, seed, number)
            network = networks[number % len(networks)]
            passes += trainer.refill(network, batches, REAL)
            trainer.train(settings.rounds_epochs)
    return {"training_passes": passes, "training_seconds": time.perf_counter() - began}


def _some(data: DataSplits, count: int, seed: int, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
    batches = data.train.batches(64, shuffle=True, seed=seed, epoch=epoch)
    return (batch for _, batch in zip(range(count), batches, strict=False))


class _Victim:
    """A trained network with its real noises on the held-out pictures."""

    def __init__(self, name: str, seen: bool, network: nn.Module, x: Tensor, y: Tensor) -> None:
        self.name, self.seen, self.network, self.x, self.y = name, seen, network, x, y
        real = spectrum_losses(network, x, y, (*REAL, *WANTED), NOISE_ATTACK, warm_start=False)
        self.adversarial, self.passes = real.adversarial, real.passes / len(x)
        self.real = {eps: self._accuracy(real.adversarial[eps]) for eps in WANTED}

    def warm(self, seed: int) -> list[Row]:
        """The attack itself, continued."""
        began = time.perf_counter()
        found = spectrum_losses(
            self.network, self.x, self.y, (*REAL, *WANTED), NOISE_ATTACK, extra=_WARM_STEPS
        )
        share = len(WANTED) / (len(WANTED) + len(REAL))
        seconds = (time.perf_counter() - began) * share
        asked = {eps: found.adversarial[eps] for eps in WANTED}
        cost = {"training_passes": 0, "training_seconds": 0.0}
        passes = found.passes / len(self.x)
        return self._rows("warm attack", asked, _quality(self, asked), passes, seconds, cost, seed)

    def estimated(self, estimator: NoiseEstimator, cost: Row, seed: int) -> list[Row]:
        """What an estimator makes of the noises at the attacked strengths."""
        sources = {eps: self.adversarial[eps] for eps in REAL}
        began = time.perf_counter()
        asked = estimate_adversarial(estimator, self.x, sources, WANTED)
        seconds = time.perf_counter() - began
        quality = measure_quality(estimator, self.x, self.adversarial, WANTED)
        passes = self.passes * len(REAL) / (len(REAL) + len(WANTED))
        return self._rows(estimator.name, asked, quality, passes, seconds, cost, seed)

    def _rows(
        self,
        method: str,
        asked: dict[float, Tensor],
        quality: NoiseQuality,
        passes: float,
        seconds: float,
        cost: Row,
        seed: int,
    ) -> list[Row]:
        return [
            {
                "method": method,
                "seed": seed,
                "network": self.name,
                "seen": int(self.seen),
                "eps": eps,
                "accuracy_real": round(self.real[eps], 6),
                "accuracy": round(self._accuracy(adv), 6),
                "error": round(quality.error[eps], 6),
                "cosine": round(quality.cosine[eps], 6),
                "passes": round(passes, 3),
                "passes_all_real": round(self.passes, 3),
                "seconds": round(1000 * seconds / len(self.x), 4),
                "training_passes": cost["training_passes"],
                "training_seconds": round(cost["training_seconds"], 2),
                "pictures": len(self.x),
            }
            for eps, adv in asked.items()
        ]

    @torch.no_grad()
    def _accuracy(self, adv: Tensor) -> float:
        with undisturbed(self.network):
            return float((self.network(adv).argmax(1) == self.y).double().mean())


def _quality(victim: _Victim, asked: dict[float, Tensor]) -> NoiseQuality:
    """Distance of given pictures from the real ones."""
    error, cosine = {}, {}
    for eps, adv in asked.items():
        found, real = (adv - victim.x).flatten(1), (victim.adversarial[eps] - victim.x).flatten(1)
        some = real.norm(dim=1) > 0
        wrong = (found - real).norm(dim=1)[some] / real.norm(dim=1)[some]
        error[eps] = float(wrong.mean())
        cosine[eps] = float(torch.cosine_similarity(found, real)[some].mean())
    return NoiseQuality(error, cosine)
