"""How fast attacks are, side by side with torchattacks and with loops written like the seeds'.

All contenders of a case run in one process, each on a copy of the network, in turns whose order is
reversed every time; a ratio is formed within a turn. CPU time is that of the calling thread, with
one thread, which tolerates a busy machine better than wall time does. Cases:

* ``pgd``: PGD-10 from a random start on whole batches, every picture for all steps.
* ``evaluate``: PGD-20 accuracy of networks trained adversarially on digits, well and hardly; ours
  leaves pictures alone once they are misclassified.
* ``spectrum``: eight strengths, in one pass or by eight attacks.
* ``memory``: the most memory that tensors take during a PGD-10, beyond what there was before.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from nni_robust.attacks import attack
from nni_robust.bench._networks import ResNet18
from nni_robust.bench._rivals import plain_loop, torchattacks_pgd
from nni_robust.bench._rows import Row, machine
from nni_robust.config import parse
from nni_robust.data import DataSplits, load_dataset
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, train

__all__ = ["CASES", "AttackBench", "run_attack_bench", "summary"]

CASES = ("pgd", "evaluate", "spectrum", "memory")
#: ResNet-18 at a width, or an architecture of the zoo -> pictures of a batch.
_NETWORKS: dict[str, int] = {
    "resnet18-w16": 64,
    "resnet18-w64": 16,
    "robnet-small": 8,
    "robnet-free": 8,
}
_EPS, _STEPS, _LONG = 8 / 255, 10, 20
# On digits: strength of the training, and those at which the well and the hardly trained network have
# about the accuracies that such networks have on CIFAR-10 at 8/255 (85 % / 50 %, 60 % / 30 %).
_TRAINING_EPS, _STRONG_EPS, _WEAK_EPS = 0.2, 0.2, 0.15
# As WsrNet's from 0.03 to 0.25, these take it from three quarters to almost nothing.
_STRENGTHS = [0.15 + number * 0.03 for number in range(8)]
_BATCH = 512
_FAST = {"fold": True, "channels_last": True}

_Contender = Callable[[], float | None]
_Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class AttackBench:
    """Settings of the benchmark.

    Parameters
    ----------
    cases
        Some of :data:`CASES`.
    networks
        For ``pgd`` and ``memory``: ``resnet18-w16``, ``resnet18-w64``, ``robnet-small``,
        ``robnet-free``; ``resnet18-wN`` is any other width.
    turns
        Each contender runs so often, after once unmeasured.
    batch_size
        Of ``pgd`` and ``memory``; None is 64, 16, 8 and 8, and 16 for other widths.
    epochs
        Of the well trained network; the other one gets one fifth, at least 1.
    limit
        Most test pictures in ``evaluate`` and ``spectrum``; None is all 359.
    """

    cases: tuple[str, ...] = CASES
    networks: tuple[str, ...] = tuple(_NETWORKS)
    turns: int = 6
    batch_size: int | None = None
    epochs: int = 10
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in self.cases:
            if name not in CASES:
                raise UserError(f"cases: '{name}' is not allowed; allowed: {', '.join(CASES)}")
        for name in self.networks:
            width = name.removeprefix("resnet18-w")
            if name not in _NETWORKS and not (name != width and width.isdecimal() and int(width)):
                known = ", ".join([*_NETWORKS, "resnet18-wN"])
                raise UserError(f"networks: '{name}' is not allowed; allowed: {known}")
        for key in ("turns", "batch_size", "epochs", "limit"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise UserError(f"{key}: {value!r} is not allowed; 1 or more is")


@dataclasses.dataclass(frozen=True)
class _Contest:
    """Contenders of one case on one network; those that begin with "ours" are ours.

    A contender returns the robust accuracy that it found, or nothing.
    """

    case: str
    network: str
    pictures: int
    contenders: dict[str, _Contender]


def run_attack_bench(
    settings: AttackBench | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Run the benchmark, on one thread.

    Parameters
    ----------
    settings
        What is run; None is all.
    say
        Told what is being done.

    Returns
    -------
    list
        One row for each case, network, contender and turn: ``cpu`` and ``wall`` in seconds,
        ``accuracy`` in [0, 1] where one was measured; for ``memory``, ``bytes`` instead of times.

    Raises
    ------
    UserError
        If torchattacks is not installed.
    """
    settings = settings or AttackBench()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        where = {**machine(), "nice": os.nice(0)}
        rows = []
        for contest in _contests(settings, say):
            say(f"{contest.case}: {contest.network}")
            rows += [{**row, **where} for row in _run(contest, settings.turns)]
        return rows
    finally:
        torch.set_num_threads(threads)


def _run(contest: _Contest, turns: int) -> Iterator[Row]:
    for contender in contest.contenders.values():
        contender()
    measure = _memory if contest.case == "memory" else _times
    for turn in range(1 if contest.case == "memory" else turns):
        names = list(contest.contenders)
        for name in names if turn % 2 == 0 else names[::-1]:
            yield {
                "case": contest.case,
                "network": contest.network,
                "pictures": contest.pictures,
                "contender": name,
                "turn": turn,
                **measure(partial(_seeded, contest.contenders[name], turn)),
                "load": round(os.getloadavg()[0], 1),
            }


def _seeded(contender: _Contender, seed: int) -> float | None:
    torch.manual_seed(seed)
    return contender()


def _times(contender: _Contender) -> Row:
    wall, cpu = time.perf_counter(), time.thread_time()
    accuracy = contender()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    found: Row = {"cpu": round(cpu, 5), "wall": round(wall, 5)}
    return found if accuracy is None else {**found, "accuracy": round(accuracy, 5)}


def _memory(contender: _Contender) -> Row:
    """Highest sum of what was allocated and not yet freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        contender()
    assert prof.profiler is not None
    results: Any = prof.profiler.kineto_results
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held = peak = 0
    for _, size in events:
        held += size
        peak = max(peak, held)
    return {"bytes": peak}


def summary(rows: list[Row]) -> list[Row]:
    """For each contender of ours and each rival: the rival's figure divided by ours.

    Returns
    -------
    list
        ``cpu`` and ``wall``: medians of the ratios within turns, with ``cpu range`` and ``wall
        range``; ``memory``: the ratio of the bytes. Above 1, ours is faster or smaller. `goal` is
        the issue's, where it has one.
    """
    out: list[Row] = []
    for case, network in dict.fromkeys((row["case"], row["network"]) for row in rows):
        some = [row for row in rows if (row["case"], row["network"]) == (case, network)]
        by_name: dict[str, list[Row]] = {}
        for row in sorted(some, key=lambda row: row["turn"]):
            by_name.setdefault(row["contender"], []).append(row)
        for ours in (name for name in by_name if name.startswith("ours")):
            for rival in (name for name in by_name if not name.startswith("ours")):
                entry: Row = {"case": case, "network": network, "ours": ours, "rival": rival}
                entry["turns"] = len(by_name[ours])
                entry |= _ratios(by_name[ours], by_name[rival])
                goal = _GOALS.get((case, network, ours, rival))
                if goal is not None:
                    figure = entry["memory" if case == "memory" else "cpu"]
                    entry |= {"goal": goal, "met": figure >= goal}
                out.append(entry)
    return out


def _ratios(ours: list[Row], rivals: list[Row]) -> Row:
    found: Row = {}
    for key, name in (("cpu", "cpu"), ("wall", "wall"), ("bytes", "memory")):
        if key in ours[0]:
            ratios = [r[key] / o[key] for o, r in zip(ours, rivals, strict=True)]
            found[name] = round(statistics.median(ratios), 2)
            if len(ratios) > 1:
                found[f"{name} range"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
    if "accuracy" in ours[0]:
        found["accuracy"] = round(statistics.fmean(row["accuracy"] for row in ours), 4)
        found["rival's accuracy"] = round(statistics.fmean(row["accuracy"] for row in rivals), 4)
    return found


_SEEDS, _SEEDS_EVAL = "plain loop, batch statistics", "plain loop"
_GOALS: dict[tuple[str, str, str, str], float] = {
    ("pgd", "resnet18-w16", "ours, fast", "torchattacks"): 1.7,
    ("pgd", "resnet18-w64", "ours, fast", "torchattacks"): 1.0,
    ("pgd", "resnet18-w16", "ours, fast", _SEEDS): 2.2,
    ("pgd", "resnet18-w64", "ours, fast", _SEEDS): 1.6,
    ("evaluate", "digits, trained", "ours", "fixed steps"): 1.8,
    ("evaluate", "digits, weak", "ours", "fixed steps"): 2.7,
    ("spectrum", "digits, trained", "ours", "eight attacks"): 3.0,
    ("memory", "resnet18-w16", "ours, fast", "torchattacks"): 1 / 0.7,
    ("memory", "resnet18-w64", "ours, fast", "torchattacks"): 1 / 0.7,
}


# --- the contests --------------------------------------------------------------------------------


def _contests(settings: AttackBench, say: Callable[[str], None]) -> Iterator[_Contest]:
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


def _whole_batches(case: str, name: str, settings: AttackBench) -> _Contest:
    torch.manual_seed(0)
    n = settings.batch_size or _NETWORKS.get(name, 16)
    x, y = torch.rand(n, 3, 32, 32), torch.randint(0, 10, (n,))
    if name in _NETWORKS and not name.startswith("resnet18"):
        from nni_robust.architecture import load_architecture

        model = load_architecture(name).build(num_classes=10, pretrained=False)
    else:
        model = ResNet18(int(name.removeprefix("resnet18-w")))
    with torch.no_grad():  # statistics of a network that was in use
        for _ in range(10):
            model.train()(torch.rand(n, 3, 32, 32))
    model.eval()

    how = {"eps": _EPS, "step": _EPS / 4, "steps": _STEPS}
    ours = {"eps": _EPS, "steps": _STEPS}
    runs: dict[str, _Run] = {
        "ours": attack("pgd", **ours),
        "ours, fast": attack("pgd", **ours, **_FAST),
        "torchattacks": partial(torchattacks_pgd, **how),
        _SEEDS_EVAL: partial(plain_loop, **how, train=False),
        _SEEDS: partial(plain_loop, **how, train=True),
    }
    contenders = {key: _silent(run, copy.deepcopy(model), x, y) for key, run in runs.items()}
    return _Contest(case, name, n, contenders)


def _silent(run: _Run, model: nn.Module, x: Tensor, y: Tensor) -> _Contender:
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


def _evaluation(name: str, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> _Contest:
    return _Contest(
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


def _spectrum(name: str, model: nn.Module, x: Tensor, y: Tensor) -> _Contest:
    def eight(make: Callable[[float], _Run]) -> float:
        return statistics.fmean(_accuracy(make(eps), model, x, y) for eps in _STRENGTHS)

    def eight_evaluations() -> float:
        threats = [ThreatModel("linf", eps) for eps in _STRENGTHS]
        found = [
            evaluate(model, (x, y), f"pgd{_LONG}", threat=threat, batch_size=_BATCH)
            for threat in threats
        ]
        return statistics.fmean(one.worst for one in found)

    return _Contest(
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
    for x_part, y_part in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        adv = run(model, x_part, y_part)
        with torch.no_grad():
            good += int((model(adv).argmax(1) == y_part).sum())
    return good / len(x)
