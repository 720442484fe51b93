"""What it costs to have a trial at all: seconds from submit to the evaluator's first line.

Two workloads, each on NNI's own `NasExperiment` and on ours, in turns within one process:

* ``empty``: trials that only say when they began. A strategy hands in a model whenever a worker is
  free, as NNI's strategies do. `latency` is from submit to the beginning; `period` is the time from
  one beginning to the next, so what each further candidate costs.
* ``supernet``: a one-shot search whose candidates are scored on a few clean pictures with the
  supernet's weights; `period` is the time per candidate, work included.

The first trial of an experiment stands apart: ours imports torch and NNI in it, once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nni
from nni.nas.evaluator import Evaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import Strategy
from nni.runtime.log import silence_stdout
from torch import nn

from nni_robust import registry
from nni_robust.bench._rows import Row, machine
from nni_robust.errors import UserError
from nni_robust.nni_adapter.experiment import RobustNasExperiment, stop_orphan
from nni_robust.nni_adapter.terminal import terminate_as_interrupt
from nni_robust.nni_adapter.warm import PRELOAD

__all__ = ["Overhead", "run_overhead_bench", "summary"]

#: Label -> our experiment class or NNI's, forked trials or not.
VARIANTS = {
    "nni": (False, False),
    "nni-robust, not forked": (True, False),
    "nni-robust": (True, True),
}

_TASK = {"dataset": "digits", "threat": {"eps": 0.1}, "train_limit": 256, "validation_limit": 64}
_TRAINING = {"epochs": 1, "attack": {"steps": 1}, "validation_attack": None}


@dataclasses.dataclass(frozen=True)
class Overhead:
    """Settings of the benchmark.

    Parameters
    ----------
    trials
        Trials of each experiment (candidates, with a supernet).
    concurrency
        Trials at a time.
    rounds
        Repetitions; the order of the variants alternates.
    workloads
        ``empty``, ``supernet``.
    variants
        Some of :data:`VARIANTS`.
    """

    trials: int = 10
    concurrency: int = 2
    rounds: int = 3
    workloads: tuple[str, ...] = ("empty", "supernet")
    variants: tuple[str, ...] = tuple(VARIANTS)


class TwoLayers(ModelSpace):
    """The smallest space there is: two choices of two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LayerChoice([nn.Identity(), nn.ReLU()], label="first")
        self.second = LayerChoice([nn.Identity(), nn.ReLU()], label="second")

    def forward(self, x: Any) -> Any:
        """Of no use here."""
        return self.second(self.first(x))


@nni.trace
class Clock(Evaluator):
    """Says when it began."""

    def evaluate(self, model: Any) -> None:
        """Report, and no more."""
        nni.report_final_result({"default": 0.0, "began": time.time()})


class InTurn(Strategy):
    """Hands in equal models, each when a worker is free; notes when."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self.trials = trials
        self.models: list[Any] = []
        self.submitted: list[float] = []

    def _run(self) -> None:
        for _ in range(self.trials):
            if not self.wait_for_resource():
                return
            model = self.model_space.freeze({"first": 0, "second": 1})
            self.models.append(model)
            self.submitted.append(time.time())
            self.engine.submit_models(model)
        while not all(model.status.completed() for model in self.models):
            time.sleep(0.2)


def run_overhead_bench(
    settings: Overhead, report: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Run the benchmark.

    Parameters
    ----------
    settings
        What is run.
    report
        Takes one line for each experiment.

    Returns
    -------
    One row for each experiment.

    Raises
    ------
    UserError
        If a variant or workload has no such name, or there are too few trials to time.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after NNI was stopped.
    """
    for given, known in ((settings.variants, VARIANTS), (settings.workloads, _WORKLOADS)):
        for name in given:
            if name not in known:
                raise UserError(f"'{name}' is not allowed; allowed: {', '.join(known)}")
    if settings.trials <= max(2, settings.concurrency):
        raise UserError(
            f"--trials {settings.trials} is not allowed; more than {max(2, settings.concurrency)} "
            "are (the first ones start NNI)"
        )
    silence_stdout()
    rows: list[Row] = []
    for workload, number, variant in _turns(settings):
        with terminate_as_interrupt():
            found = _WORKLOADS[workload](settings, variant)
        row = {
            "workload": workload,
            "variant": variant,
            "round": number,
            "trials": settings.trials,
            "concurrency": settings.concurrency,
            **{key: round(value, 3) for key, value in found.items()},
            "load": round(os.getloadavg()[0], 1),
            **machine(),
        }
        rows.append(row)
        report(f"{workload}, {variant}: " + _line(found))
    return rows


def _turns(settings: Overhead) -> Iterator[tuple[str, int, str]]:
    """Workload, number of the round and variant, in order."""
    for workload in settings.workloads:
        for number in range(settings.rounds):
            order = list(settings.variants)
            for variant in order if number % 2 == 0 else reversed(order):
                yield workload, number, variant


def summary(rows: list[Row]) -> list[Row]:
    """Median, lowest and highest of each figure, by workload and variant; ratios to NNI's own."""
    out: list[Row] = []
    for key in dict.fromkeys((row["workload"], row["variant"]) for row in rows):
        mine = [row for row in rows if (row["workload"], row["variant"]) == key]
        entry: Row = {"workload": key[0], "variant": key[1], "rounds": len(mine)}
        for figure in ("first", "latency", "period"):
            values = [row[figure] for row in mine if figure in row]
            if values:
                entry[figure] = statistics.median(values)
                entry[f"{figure} range"] = f"{min(values):.2f} to {max(values):.2f}"
        out.append(entry)
    theirs = {entry["workload"]: entry for entry in out if entry["variant"] == "nni"}
    for entry in out:
        base = theirs.get(entry["workload"])
        if base is not None and entry is not base:
            entry["times faster"] = round(base["period"] / entry["period"], 1)
    return out


def _line(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in found.items())


def _empty(settings: Overhead, variant: str) -> dict[str, float]:
    strategy = InTurn(settings.trials)
    with _experiment(settings, variant, TwoLayers(), Clock(), strategy, settings.trials) as jobs:
        began = [job.finalMetricData[0].data["began"] for job in _in_order(jobs())]
    latency = [b - s for b, s in zip(began, strategy.submitted, strict=True)]
    rest = sorted(began)[1:]
    return {
        "first": latency[0],
        "latency": statistics.median(latency[settings.concurrency :]),
        # From the second on, as the first pays for the warm process.
        "period": (rest[-1] - rest[0]) / (len(rest) - 1),
    }


def _supernet(settings: Overhead, variant: str) -> dict[str, float]:
    space = registry.search_spaces.get("robnet")(num_classes=10, init_channels=8, cells=3)
    strategy = registry.strategies.get("robust-one-shot")(
        candidates=settings.trials, supernet=_TRAINING
    )
    with tempfile.TemporaryDirectory() as store:
        evaluator = registry.evaluators.get("adversarial-training")(
            task=_TASK, train=None, attacks=["clean"], score_limit=16, store=store
        )
        total = settings.trials + 1
        with _experiment(settings, variant, space, evaluator, strategy, total) as jobs:
            first, *rest = _in_order(jobs())
    begins, ends = [job.startTime for job in rest], [job.endTime for job in rest]
    return {
        "first": (first.endTime - first.startTime) / 1000,
        "period": (max(ends) - min(begins)) / 1000 / settings.trials,
    }


_WORKLOADS = {"empty": _empty, "supernet": _supernet}


def _in_order(jobs: list[Any]) -> list[Any]:
    return sorted(jobs, key=lambda job: job.hyperParameters[0].parameter_id)


@contextlib.contextmanager
def _experiment(
    settings: Overhead, variant: str, space: Any, evaluator: Any, strategy: Any, trials: int
) -> Iterator[Callable[[], list[Any]]]:
    """Run an experiment in a folder of its own; gives its trial jobs while it can be asked."""
    ours, forked = VARIANTS[variant]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        config = NasExperimentConfig("ts", "simplified", "local")
        config.experiment_working_directory = Path(folder, "nni")
        config.trial_concurrency, config.max_trial_number = settings.concurrency, trials
        config.trial_gpu_number = 0
        code = Path(folder, "code")
        code.mkdir()
        os.chdir(code)
        try:
            experiment: Any
            if ours:
                interpreter = shlex.quote(sys.executable)
                if forked:
                    interpreter += " -m nni_robust.nni_adapter.warm"
                    modules = [type(part).__module__ for part in (space, evaluator, strategy)]
                    (code / PRELOAD).write_text(json.dumps({"modules": modules, "task": _TASK}))
                experiment = RobustNasExperiment(
                    space, evaluator, strategy, config, budget=trials, interpreter=interpreter
                )
            else:
                experiment = NasExperiment(space, evaluator, strategy, config)
            try:
                # Not `run`, which takes Ctrl-C for a regular end.
                experiment.start(_free_port())
                yield experiment.list_trial_jobs
            finally:
                try:
                    experiment.stop()
                finally:  # a manager that was interrupted while it started is not known to NNI
                    stop_orphan(experiment.id)
        finally:
            os.chdir(before)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
