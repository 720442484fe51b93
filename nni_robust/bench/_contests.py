"""The contests of ``bench attack``: networks, pictures, and who attacks them."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.bench._networks import ResNet18
from nni_robust.bench._rivals import plain_loop, torchattacks_pgd
from nni_robust.config import parse
from nni_robust.data import DataSplits, load_dataset
from nni_robust.evaluation import evaluate
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, train

if TYPE_CHECKING:
    from nni_robust.bench.attack import AttackBench

__all__ = ["COMPILED", "NETWORKS", "PLAIN", "PLAIN_TRAIN", "Contender", "Contest", "contests"]

#: Names of the plain loop, with the batch's statistics and with the running ones.
COMPILED = "ours, compiled"
PLAIN_TRAIN, PLAIN = "plain loop, batch statistics", "plain loop"
#: ResNet-18 at a width, or an architecture of the zoo -> pictures of a batch.
NETWORKS: dict[str, int] = {
    "resnet18-w16": 64,
    "resnet18-w64": 16,
    "robnet-small": 4,
    "robnet-free": 4,
}
_EPS, _STEPS, _LONG = 8 / 255, 10, 20
# On digits: strength of the training, and those at which the well and the hardly trained network
# have about the accuracies of such networks on CIFAR-10 at 8/255 (85 % / 50 %, 60 % / 30 %).
_TRAINING_EPS, _STRONG_EPS, _WEAK_EPS = 0.2, 0.2, 0.15
# As WsrNet's from 0.03 to 0.25, these take it from three quarters to almost nothing.
_STRENGTHS = [0.15 + number * 0.03 for number in range(8)]
_BATCH = 512
_FAST: dict[str, Any] = {"fold": True, "channels_last": True}

Contender = Callable[[], float | None]
_Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Contest:
    """Contenders of one case on one network; those that begin with "ours" are ours.

    A contender returns the robust accuracy that it found, or nothing.
    """

    case: str
    network: str
    pictures: int
    contenders: dict[str, Contender]


def contests(settings: AttackBench, say: Callable[[str], None]) -> Iterator[Contest]:
    """One contest after the other; networks are made, and trained, when their turn comes."""
    for case in ("pgd", "memory"):
        for name in settings.networks if case in settings.cases else ():
            yield _whole_batches(case, name, settings)
    if {"evaluate", "spectrum"} & {*settings.cases}:
        say("training two networks on digits")
        data = load_dataset("digits", test=True)
        assert data.test is not None
        batches = list(data.test.batches(settings.limit or len(data.test)))
        x, y = batches[0]
        strong = _trained(data, settings.epochs)
        if "evaluate" in settings.cases:
            weak = _trained(data, max(1, settings.epochs // 5))
            yield _evaluation("digits, trained", strong, x, y, _STRONG_EPS)
            yield _evaluation("digits, weak", weak, x, y, _WEAK_EPS)
        if "spectrum" in settings.cases:
            yield _spectrum("digits, trained", strong, x, y)


def _whole_batches(case: str, name: str, settings: AttackBench) -> Contest:
    torch.manual_seed(0)
    n = settings.batch_size or NETWORKS.get(name, 16)
    x, y = torch.rand(n, 3, 32, 32), torch.randint(0, 10, (n,))
    if name in NETWORKS and not name.startswith("resnet18"):
        from nni_robust.architecture import load_architecture

        model = load_architecture(name).build(num_classes=10, pretrained=False)
    else:
        model = ResNet18(int(name.removeprefix("resnet18-w")))
    with torch.no_grad():  # statistics of a network that was in use
        for _ in range(10):
            model.train()(torch.rand(n, 3, 32, 32))
    model.eval()

    how: dict[str, Any] = {"eps": _EPS, "step": _EPS / 4, "steps": _STEPS}
    ours: dict[str, Any] = {"eps": _EPS, "steps": _STEPS}
    runs: dict[str, _Run] = {
        "ours": attack("pgd", **ours),
        "ours, fast": attack("pgd", **ours, **_FAST),
        "torchattacks": partial(torchattacks_pgd, **how),
        PLAIN: partial(plain_loop, **how, train=False),
        PLAIN_TRAIN: partial(plain_loop, **how, train=True),
    }
    if settings.compile and case == "pgd":
        runs = {COMPILED: attack("pgd", **ours, **_FAST, compile=True), **runs}
    contenders = {key: _silent(run, copy.deepcopy(model), x, y) for key, run in runs.items()}
    return Contest(case, name, n, contenders)


def _silent(run: _Run, model: nn.Module, x: Tensor, y: Tensor) -> Contender:
    def contender() -> None:
        run(model, x, y)

    return contender


def _trained(data: DataSplits, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    # Enlarged, as maps of 8x8 and smaller would measure the cost of calls, not of arithmetic.
    network = nn.Sequential(
        nn.Upsample(scale_factor=2), ResNet18(16, blocks=1, channels=data.input_shape[0])
    )
    values = {"epochs": epochs, "batch_size": 64, "lr": 0.05, "validation_attack": None}
    recipe = parse(Recipe, {**values, "attack": {"steps": 5}}, "recipe")
    return train(network, data, recipe, ThreatModel("linf", _TRAINING_EPS), seed=0).model.eval()


def _evaluation(name: str, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Contest:
    return Contest(
        "evaluate",
        name,
        len(x),
        {
            "ours": lambda: (
                evaluate(
                    model, (x, y), f"pgd{_LONG}", threat=ThreatModel("linf", eps), batch_size=_BATCH
                ).worst
            ),
            "fixed steps, fast": lambda: _accuracy(_fixed(eps, **_FAST), model, x, y),
            "fixed steps": lambda: _accuracy(_fixed(eps), model, x, y),
            "torchattacks": lambda: _accuracy(_theirs(eps), model, x, y),
        },
    )


def _spectrum(name: str, model: nn.Module, x: Tensor, y: Tensor) -> Contest:
    def eight(make: Callable[[float], _Run]) -> float:
        return statistics.fmean(_accuracy(make(eps), model, x, y) for eps in _STRENGTHS)

    def eight_evaluations() -> float:
        threats = [ThreatModel("linf", eps) for eps in _STRENGTHS]
        found = [
            evaluate(model, (x, y), f"pgd{_LONG}", threat=threat, batch_size=_BATCH)
            for threat in threats
        ]
        return statistics.fmean(one.worst for one in found)

    return Contest(
        "spectrum",
        name,
        len(x),
        {
            "ours": lambda: (
                evaluate_spectrum(
                    model, (x, y), _STRENGTHS, f"pgd{_LONG}", batch_size=_BATCH
                ).average
            ),
            "eight of ours": eight_evaluations,
            "eight attacks": lambda: eight(_fixed),
            "eight of torchattacks": lambda: eight(_theirs),
        },
    )


def _fixed(eps: float, **settings: Any) -> _Run:
    return attack("pgd", eps=eps, steps=_LONG, **settings)


def _theirs(eps: float) -> _Run:
    return partial(torchattacks_pgd, eps=eps, step=eps / 4, steps=_LONG)


def _accuracy(run: _Run, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """As it is usually written: every picture is attacked for all steps, right or wrong."""
    good = 0
    for x_part, y_part in zip(torch.split(x, _BATCH), torch.split(y, _BATCH), strict=True):
        adv = run(model, x_part, y_part)
        with torch.no_grad():
            good += int((model(adv).argmax(1) == y_part).sum())
    return good / len(x)
