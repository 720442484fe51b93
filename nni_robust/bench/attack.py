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

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from nni_robust.bench._contests import (
    COMPILED,
    NETWORKS,
    PLAIN_TRAIN,
    Contender,
    Contest,
    contests,
)
from nni_robust.bench._rows import Row, one_thread
from nni_robust.errors import UserError

__all__ = ["CASES", "AttackBench", "run_attack_bench", "run_contest", "summary"]

CASES = ("pgd", "evaluate", "spectrum", "memory")


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
        Of ``pgd`` and ``memory``; None is 64, 16, 4 and 4, and 16 for other widths.
    epochs
        Of the well trained network; the other one gets one fifth, at least 1.
    limit
        Most test pictures in ``evaluate`` and ``spectrum``; None is all 360.
    compile
        In ``pgd``, also ours through ``torch.compile``; each network takes half a minute more.
    """

    cases: tuple[str, ...] = CASES
    networks: tuple[str, ...] = tuple(NETWORKS)
    turns: int = 6
    batch_size: int | None = None
    epochs: int = 10
    limit: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in self.cases:
            if name not in CASES:
                raise UserError(f"cases: '{name}' is not allowed; allowed: {', '.join(CASES)}")
        for name in self.networks:
            width = name.removeprefix("resnet18-w")
            if name not in NETWORKS and not (name != width and width.isdecimal() and int(width)):
                known = ", ".join([*NETWORKS, "resnet18-wN"])
                raise UserError(f"networks: '{name}' is not allowed; allowed: {known}")
        for key in ("turns", "batch_size", "epochs", "limit"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise UserError(f"{key}: {value!r} is not allowed; 1 or more is")


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
    with one_thread() as where:
        rows = []
        for contest in contests(settings, say):
            say(f"{contest.case}: {contest.network}")
            rows += [{**row, **where} for row in run_contest(contest, settings.turns)]
        return rows


def run_contest(contest: Contest, turns: int) -> Iterator[Row]:
    """Every contender once unmeasured, then in turns; a row for each contender and turn."""
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


def _seeded(contender: Contender, seed: int) -> float | None:
    torch.manual_seed(seed)
    return contender()


def _times(contender: Contender) -> Row:
    wall, cpu = time.perf_counter(), time.thread_time()
    accuracy = contender()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    found: Row = {"cpu": round(cpu, 5), "wall": round(wall, 5)}
    return found if accuracy is None else {**found, "accuracy": round(accuracy, 5)}


def _memory(contender: Contender) -> Row:
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


_GOALS: dict[tuple[str, str, str, str], float] = {
    ("pgd", "resnet18-w16", "ours, fast", "torchattacks"): 1.7,
    ("pgd", "resnet18-w16", COMPILED, "torchattacks"): 1.9,
    ("pgd", "resnet18-w64", "ours, fast", "torchattacks"): 1.0,
    ("pgd", "resnet18-w16", "ours, fast", PLAIN_TRAIN): 2.2,
    ("pgd", "resnet18-w64", "ours, fast", PLAIN_TRAIN): 1.6,
    ("evaluate", "digits, trained", "ours", "fixed steps"): 1.8,
    ("evaluate", "digits, weak", "ours", "fixed steps"): 2.7,
    ("spectrum", "digits, trained", "ours", "eight attacks"): 3.0,
    ("memory", "resnet18-w16", "ours, fast", "torchattacks"): 1 / 0.7,
    ("memory", "resnet18-w64", "ours, fast", "torchattacks"): 1 / 0.7,
}
