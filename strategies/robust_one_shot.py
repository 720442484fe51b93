"""One-shot robust search: RobNet's scheme, in its core form, on any NNI model space.

Paper: Guo et al., "When NAS Meets Robustness", CVPR 2020 (arXiv 1911.10695v3), section 3.2,
algorithm 1. Seed: gmh14/RobNets, which never contained the search.

1. Train a supernet: for each batch draw one path, attack that path, train it on the adversarial
   pictures.
2. Draw candidates; optionally keep only those whose late cells an attack moves little (section
   3.5; `_screening`).
3. Each candidate inherits the supernet's weights, gets a short adversarial fine-tuning and is
   scored by white-box PGD on the search-validation split.
4. The best score wins.

Differences from the paper, all on purpose: scores come from a validation split and not from the
test set; candidates get fresh batch-norm statistics before fine-tuning (the supernet's mix all
paths), which an evaluator setting turns off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nni_robust.analysis.fsp import fsp_taps
from nni_robust.analysis.rejection import last_cells
from nni_robust.config import as_mapping, parse
from nni_robust.data import load_task
from nni_robust.errors import UserError, nearest
from nni_robust.sampling import Sample, draw, draw_distinct
from nni_robust.store import Store
from nni_robust.training import parse_recipe

from ._phases import PhasedStrategy, blank_space, check_supernet, supernet_recipe
from ._screening import FspScreening, Screen, hand_over, survivors
from ._supernet_training import SupernetTraining

__all__ = ["RobustOneShot"]


class RobustOneShot(PhasedStrategy):
    """Train a robust supernet, then rank candidates that inherit its weights.

    Works on any NNI space that NNI can turn into a supernet, with any evaluator that has ``task``,
    ``store``, ``recipe``, ``supernet`` and ``variant(supernet=key)``, as `AdversarialTraining`
    does.

    Parameters
    ----------
    candidates
        How many different architectures are evaluated (1,000 in the paper's study).
    supernet
        Settings of the supernet's :class:`nni_robust.training.Recipe`; None is the evaluator's
        recipe.
    uniform
        Draw choices with equal probability instead of the space's prior (RobNet's prior keeps each
        operation with probability 0.7).
    require
        Bounds that every candidate keeps: a name to ``[lowest, highest]``, null for no bound. Names
        are ``params`` and ``macs`` (for one picture of the task) and whatever the space's
        ``attributes(sample)`` gives, such as RobNet's ``density`` or ``convs``. Impossible bounds
        are refused before any training.
    screen
        Settings of a screening: ``draws`` candidates are drawn, and only those with the smallest
        FSP distance (a share ``keep``, or up to ``threshold``) are evaluated, at most `candidates`
        of them. Also ``pictures``, ``last``, ``reduce``. Needs a space whose networks have cells.
        None is off.
    seed
        Seed of candidates and supernet.
    """

    name = "robust-one-shot"
    needs = ("task", "store", "recipe", "supernet", "variant")

    def __init__(
        self,
        *,
        candidates: int = 50,
        supernet: Mapping[str, Any] | None = None,
        uniform: bool = False,
        require: Mapping[str, Sequence[float | None]] | None = None,
        screen: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if candidates < 1:
            raise UserError(f"strategy.candidates: {candidates} is not allowed; at least 1 is")
        self.screen = None if screen is None else parse(Screen, screen, "strategy.screen")
        self.candidates = candidates if self.screen is None else self.screen.most(candidates)
        self.uniform, self.seed = uniform, seed
        self.recipe = None if supernet is None else parse_recipe(supernet, "strategy.supernet")
        self.require = _bounds(require or {})
        self.samples: list[Sample] = []
        self.scores: dict[int, float] = {}

    @property
    def trials(self) -> int:
        """Most models that are submitted: the supernet, a screening, the candidates."""
        return self.candidates + (1 if self.screen is None else 2)

    def extra_repr(self) -> str:
        return f"candidates={self.candidates}, seed={self.seed}"

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        super()._initialize(model_space, engine)
        if supernet_recipe(self.recipe, model_space.evaluator.recipe) is None:
            raise UserError(
                "strategy.supernet is missing: neither it nor evaluator.train says how to train"
            )
        check_supernet(model_space)
        self._draw_candidates(model_space)
        return model_space

    def _draw_candidates(self, model_space: Any) -> None:
        """All candidates are drawn before any work, so that an impossible budget costs nothing."""
        if self.samples:  # loaded from a state
            return
        space = blank_space(model_space)
        mutables = model_space.simplify()
        keeps = self._rule(space, mutables, model_space.evaluator)
        self.samples = draw_distinct(
            self.candidates if self.screen is None else self.screen.draws,
            mutables,
            np.random.RandomState(self.seed),
            uniform=self.uniform,
            accept=lambda sample: model_space.contains(sample) and keeps(sample),
        )
        if self.screen is not None:
            with torch.device("meta"):
                cells = len(fsp_taps(space.freeze(self.samples[0])))
            last_cells(cells, self.screen.last)  # refuses more cells than there are

    def _rule(self, space: Any, mutables: Any, evaluator: Any) -> Callable[[Sample], bool]:
        """Whether a sample keeps the bounds of `require`."""
        if not self.require:
            return lambda sample: True
        shape = load_task(evaluator.task).input_shape
        costs = {"params", "macs"} if hasattr(space, "cost") else set()

        def measured(sample: Sample) -> dict[str, float]:
            values = dict(space.attributes(sample)) if hasattr(space, "attributes") else {}
            if costs & set(self.require):
                cost = space.cost(sample, shape)
                values.update(params=cost.params, macs=cost.macs)
            return values

        known = sorted({*measured(draw(mutables, np.random.RandomState(0))), *costs})
        for name in self.require:
            if name not in known:
                raise UserError(
                    f"unknown key '{name}' in strategy.require{nearest(name, known)} (allowed "
                    "for space "
                    f"{type(space).__name__}: {', '.join(known) or 'none'})"
                )

        def keeps(sample: Sample) -> bool:
            values = measured(sample)
            return all(low <= values[name] <= high for name, (low, high) in self.require.items())

        return keeps

    def _run(self) -> None:
        supernet = self._train_supernet()
        evaluator = self.model_space.evaluator.variant(supernet=supernet)
        chosen = list(range(len(self.samples))) if self.screen is None else self._screened(supernet)
        todo = [index for index in chosen if index not in self.scores]
        found = self.evaluate([self.samples[index] for index in todo], evaluator)
        for index, metrics in zip(todo, found, strict=True):
            if metrics is not None:
                self.scores[index] = float(metrics["default"])
        if not self.scores:
            raise UserError(
                f"zero candidates left: all {len(chosen)} failed; the reasons are in "
                f"{evaluator.store}/*/error.json"
            )

    def _train_supernet(self) -> str:
        evaluator = self.model_space.evaluator
        training = SupernetTraining(
            task=as_mapping(evaluator.task),
            train=as_mapping(supernet_recipe(self.recipe, evaluator.recipe)),
            uniform=self.uniform,
            seed=self.seed,
            store=evaluator.store,
        )
        return str(self.prepare(training, self.samples[0], "the supernet's training")["key"])

    def _screened(self, supernet: str) -> list[int]:
        """Positions of the samples that survive the screening."""
        assert self.screen is not None
        evaluator = self.model_space.evaluator
        store = Store(evaluator.store)
        screening = FspScreening(
            task=as_mapping(evaluator.task),
            train=as_mapping(evaluator.recipe or self.recipe),
            supernet=supernet,
            samples=hand_over(store, self.samples),
            store=evaluator.store,
            pictures=self.screen.pictures,
            reduce=self.screen.reduce,
            recalibrate_batches=getattr(evaluator, "recalibrate_batches", 8),
            seed=getattr(evaluator, "seed", self.seed),
        )
        record = self.prepare(screening, self.samples[0], "the screening")
        return survivors(record["screened"], self.screen, self.candidates)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the drawn candidates and the scores known so far."""
        return {"samples": self.samples, "scores": {str(i): s for i, s in self.scores.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: the same candidates, without those already scored."""
        self.samples = list(state_dict["samples"])
        self.scores = {int(i): float(s) for i, s in state_dict["scores"].items()}


def _bounds(require: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Bounds as pairs of numbers, an absent one infinite."""
    bounds = {}
    for name, pair in require.items():
        good = (
            isinstance(pair, (list, tuple))
            and len(pair) == 2
            and all(v is None or (isinstance(v, (int, float)) and not math.isnan(v)) for v in pair)
        )
        if not good:
            raise UserError(
                f"strategy.require.{name}: {pair!r} is not allowed; [lowest, highest] is, null "
                "for no bound"
            )
        low = -math.inf if pair[0] is None else float(pair[0])
        high = math.inf if pair[1] is None else float(pair[1])
        if low > high:
            raise UserError(
                f"strategy.require.{name}: the lowest, {low:g}, is above the highest, {high:g}"
            )
        bounds[name] = (low, high)
    return bounds
