"""How fast a one-shot search is, side by side with one written like the seeds' loops.

The two things that a one-shot search spends its time on, measured apart, without NNI around them
(what NNI costs is ``bench overhead``). RobNet cells on digits; both sides have the same space,
paths, pictures, attacks, settings and optimizer.

* ``supernet``: one epoch; for each batch a random path is drawn, attacked by PGD, and trained. Ours
  is :func:`nni_robust.training.train` with a :class:`~nni_robust.supernet.PathSampler`; the rival's
  attack is a full backward pass at each step with the batch's statistics, as in the seeds' code.
* ``candidates``: PGD-20 accuracy of candidates with the supernet's weights. Ours is
  :func:`nni_robust.evaluate`; the rivals, the seeds' loop and torchattacks, attack every picture
  for all steps.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust import registry
from nni_robust.bench._contests import PLAIN, PLAIN_TRAIN, Contest
from nni_robust.bench._rivals import plain_loop, torchattacks_pgd
from nni_robust.bench._rows import Row, one_thread
from nni_robust.bench.attack import run_contest, summary
from nni_robust.config import parse
from nni_robust.data import DataSplits, load_dataset
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.sampling import draw, draw_distinct
from nni_robust.supernet import PathSampler, build_supernet, inherit, set_path
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, recalibrate_bn, train

__all__ = ["SearchBench", "run_search_bench", "summary"]

_EPS, _TRAINING_STEPS, _STEPS, _BATCH = 0.1, 5, 20, 64


@dataclasses.dataclass(frozen=True)
class SearchBench:
    """Settings of the benchmark.

    Parameters
    ----------
    channels, cells
        Size of the space's networks.
    epochs
        Of the supernet, before candidates are scored.
    candidates
        Architectures that are scored in each turn.
    pictures
        Training pictures of an epoch, and validation pictures of a score, at most.
    turns
        Each contender runs so often, after once unmeasured.
    """

    channels: int = 8
    cells: int = 3
    epochs: int = 3
    candidates: int = 4
    pictures: int = 1024
    turns: int = 5

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f"{key}: {value!r} is not allowed; 1 or more is")
        if self.pictures < _BATCH:
            raise UserError(f"pictures: {self.pictures} is not allowed; {_BATCH} or more is")


def run_search_bench(
    settings: SearchBench | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Run the benchmark, on one thread.

    Returns
    -------
    list
        Rows as :func:`nni_robust.bench.attack.run_attack_bench` gives them; ``accuracy`` of
        ``candidates`` is their mean. Times are those of the whole epoch and of all candidates.
    """
    settings = settings or SearchBench()
    with one_thread() as where:
        rows = []
        for contest in _contests(settings, say):
            say(f"{contest.case}: {contest.network}")
            rows += [{**row, **where} for row in run_contest(contest, settings.turns)]
        return rows


def _contests(settings: SearchBench, say: Callable[[str], None]) -> Iterator[Contest]:
    data = load_dataset("digits")
    data = dataclasses.replace(data, train=data.train.head(settings.pictures))
    torch.manual_seed(0)
    space: Any = registry.search_spaces.get("robnet")(
        num_classes=data.num_classes, init_channels=settings.channels, cells=settings.cells
    )
    mutables = space.simplify()
    samples = draw_distinct(settings.candidates, mutables, np.random.RandomState(0))
    supernet = build_supernet(space)
    set_path(supernet, draw(mutables, np.random.RandomState(0)))
    name = f"robnet, {settings.channels} channels, {settings.cells} cells"
    yield _supernet(name, supernet, mutables, data)
    say(f"training the supernet for {settings.epochs} epochs")
    _ours(supernet, mutables, data, settings.epochs)
    yield _candidates(name, supernet, samples, data, settings.pictures)


def _recipe(epochs: int) -> Recipe:
    values = {"epochs": epochs, "batch_size": _BATCH, "lr": 0.05, "validation_attack": None}
    attack = {"steps": _TRAINING_STEPS, "step_size": _EPS / 4}
    return parse(Recipe, {**values, "augment": [], "attack": attack}, "recipe")


def _ours(supernet: nn.Module, mutables: Any, data: DataSplits, epochs: int) -> None:
    hook, threat = PathSampler(mutables), ThreatModel("linf", _EPS)
    train(supernet, data, _recipe(epochs), threat, seed=0, hook=hook, validate=False)


def _supernet(name: str, supernet: nn.Module, mutables: Any, data: DataSplits) -> Contest:
    def rival(model: nn.Module, *, statistics_of_batch: bool) -> None:
        recipe, rng = _recipe(1), np.random.RandomState(0)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        for x, y in data.train.batches(_BATCH, shuffle=True, drop_last=True):
            set_path(model, draw(mutables, rng))
            adv = plain_loop(
                model,
                x,
                y,
                eps=_EPS,
                step=_EPS / 4,
                steps=_TRAINING_STEPS,
                train=statistics_of_batch,
            )
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(adv), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    # Each turn trains on: what an epoch costs does not depend on the weights.
    ours, plain, batch = (copy.deepcopy(supernet) for _ in range(3))
    contenders: dict[str, Callable[[], float | None]] = {
        "ours": lambda: _ours(ours, mutables, data, 1),
        PLAIN: lambda: rival(plain, statistics_of_batch=False),
        PLAIN_TRAIN: lambda: rival(batch, statistics_of_batch=True),
    }
    return Contest("supernet", name, len(data.train), contenders)


def _candidates(
    name: str, supernet: nn.Module, samples: list[Any], data: DataSplits, limit: int
) -> Contest:
    """Candidates as a search scores them: inherited weights, statistics of their own."""
    x, y = next(data.validation.head(limit).batches(limit))
    networks = [inherit(supernet, sample) for sample in samples]
    for network in networks:
        recalibrate_bn(network, data.train)
        network.eval()
    how: dict[str, Any] = {"eps": _EPS, "step": _EPS / 4, "steps": _STEPS}

    def ours(network: nn.Module) -> float:
        threat = ThreatModel("linf", _EPS)
        return evaluate(network, (x, y), f"pgd{_STEPS}", threat=threat).worst

    def fixed(network: nn.Module, run: Callable[..., Tensor]) -> float:
        adv = run(network, x, y, **how)
        with torch.no_grad():
            return float((network(adv).argmax(1) == y).float().mean())

    def over_all(score: Callable[[nn.Module], float]) -> Callable[[], float]:
        own = [copy.deepcopy(network) for network in networks]
        return lambda: statistics.fmean(score(network) for network in own)

    return Contest(
        "candidates",
        name,
        len(x),
        {
            "ours": over_all(ours),
            PLAIN: over_all(partial(fixed, run=partial(plain_loop, train=False))),
            "torchattacks": over_all(partial(fixed, run=torchattacks_pgd)),
        },
    )
