"""Wide-spectrum search: networks that hold at many attack strengths, not at one (Wsr-NAS).

Cheng, Li, Dong, Su, You, Xu, "Neural Architecture Search for Wide Spectrum Adversarial Robustness",
AAAI 2023 (DOI 10.1609/aaai.v37i1.25118); code: zhicheng2T0/Wsr-NAS at 7736f5d. Works on any NNI
space of categorical choices that NNI can turn into a supernet.

1. Warm-up: architectures drawn at random train a supernet, one for an epoch, under attack; then
   each is trained and measured once more, clean and at every strength.
2. A predictor learns from these measurements which losses an architecture has.
3. Search: each epoch draws an architecture from logits with Gumbel noise, trains and measures it,
   fits the predictor, and takes a step on the logits against the gradient of the objective, which
   flows through the predictor and not through the supernet.
4. The most promising architectures are measured side by side with the final weights. The best go to
   the experiment's evaluator, inheriting the supernet's weights.

Corrected against the code (``mode: legacy`` brings back the first three):

* robust losses are means over pictures, not smaller by the batch size
  (:mod:`nni_robust.objective`);
* the predictor can predict any loss, not only those below 2;
* the logits' learning rate is 3e-4, not 3e-5, with which the published networks differ from the
  initial random one in 2 to 5 of 16 choices; :func:`export` reports how far logits moved;
* the predictor is by default a ridge regression, because an LSTM of the paper's size learns nothing
  that generalises from 100 measurements (:mod:`nni_robust.predictor.linear`);
* attacks leave no gradient and no batch-norm statistics behind; every loss is measured on the
  search-validation split in evaluation mode, with statistics of the measured architecture;
* the paper's supernet sums all 14 edges of a cell; here what is trained is a network of the space.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nni_robust.config import as_mapping, parse
from nni_robust.errors import UserError
from nni_robust.predictor import make_encoding
from nni_robust.sampling import Sample, draw_distinct
from nni_robust.store import write_json
from nni_robust.training import parse_recipe

from ._phases import PhasedStrategy, check_supernet, supernet_recipe
from ._wide_spectrum_comparison import Comparison, SignalComparison
from ._wide_spectrum_settings import SearchSettings, parse_signals
from ._wide_spectrum_training import WideSpectrumTraining, search_recipe

__all__ = ["WideSpectrumSearch"]


class WideSpectrumSearch(PhasedStrategy):
    """Search for the smallest weighted loss over clean pictures and a spectrum of strengths.

    Needs an evaluator that has ``task``, ``store``, ``recipe``, ``supernet`` and
    ``variant(supernet=key)``, as `AdversarialTraining` does. The norm of the attacks is that of the
    task's threat, whose eps is the strength that the supernet is trained with.

    Parameters
    ----------
    candidates
        Best finalists of each search that the evaluator trains and scores.
    epochs
        Epochs in which the logits move.
    warmup
        Settings: ``archs``, ``epochs``.
    paths_per_epoch
        Architectures that share an epoch's batches; each is measured.
    objective
        Settings of a :class:`nni_robust.objective.SpectrumObjective`.
    signal
        How losses are measured: ``"naive"`` (an attack from scratch at every strength),
        ``"estimator"`` (the paper's AN-Estimator for every second strength) or ``"warm-start"``
        (one attack that goes on from strength to strength).
    measure
        Settings of the measurement: ``steps``, ``rel_step``, ``random_start``, ``pictures``,
        ``batch_size``, ``recalibrate_batches``, ``warm_start``, ``estimator``.
    predictor
        Settings of a :class:`nni_robust.predictor.PredictorSettings`.
    alpha
        Settings of :class:`nni_robust.predictor.AlphaSettings`.
    tau
        Temperature of the relaxed choices.
    memory
        Measurements that the predictor learns from; the oldest go.
    finalists
        Architectures that are measured again at the end.
    mode
        ``"paper_fixed"`` or ``"legacy"``: the repository's averaging of losses, predictor and
        learning rates.
    layout
        How architectures become matrices, see :mod:`nni_robust.predictor.encoding`.
    supernet
        Settings of the supernet's :class:`nni_robust.training.Recipe`; None is the evaluator's
        recipe. Its number of epochs is that of the search, warm-up included.
    seeds
        Number of searches, with seeds from `seed` on.
    signals
        Compare signals: a list of them, or a mapping of labels to changes of the settings above. A
        search is made for each and each seed.
    compare
        Settings of a comparison of these signals on the same architectures: ``candidates``,
        ``reference``, ``repeat``, ``pictures``; None is no comparison.
    seed
        Of everything random.
    """

    name = "wide-spectrum"
    needs = ("task", "store", "recipe", "supernet", "variant")

    def __init__(
        self,
        *,
        candidates: int = 3,
        epochs: int = 200,
        warmup: Mapping[str, Any] | None = None,
        paths_per_epoch: int = 1,
        objective: Mapping[str, Any] | None = None,
        signal: str = "warm-start",
        measure: Mapping[str, Any] | None = None,
        predictor: Mapping[str, Any] | None = None,
        alpha: Mapping[str, Any] | None = None,
        tau: float = 0.1,
        memory: int = 100,
        finalists: int = 8,
        mode: str = "paper_fixed",
        layout: str = "auto",
        supernet: Mapping[str, Any] | None = None,
        seeds: int = 1,
        signals: Any = None,
        compare: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        settings = parse(
            SearchSettings,
            {
                "epochs": epochs,
                "warmup": warmup or {},
                "paths_per_epoch": paths_per_epoch,
                "objective": objective or {},
                "signal": signal,
                "measure": measure or {},
                "predictor": predictor or {},
                "alpha": alpha or {},
                "tau": tau,
                "memory": memory,
                "finalists": max(finalists, candidates),
                "mode": mode,
                "layout": layout,
            },
            "strategy",
        )
        for name, value, low in (("candidates", candidates, 0), ("seeds", seeds, 1)):
            if value < low:
                raise UserError(f"strategy.{name}: {value} is not allowed; at least {low} is")
        self.searches = parse_signals(settings, signals)
        self.compare = None if compare is None else parse(Comparison, compare, "strategy.compare")
        if self.compare is not None and self.compare.reference not in self.searches:
            raise UserError(
                f"strategy.compare.reference: {self.compare.reference!r} is not allowed; labels "
                f"of strategy.signals are ({', '.join(self.searches)})"
            )
        self.per_search, self.seed, self.seeds = candidates, seed, seeds
        self.candidates = candidates * len(self.searches) * seeds
        self.recipe = None if supernet is None else parse_recipe(supernet, "strategy.supernet")
        self.found: list[dict[str, Any]] = []
        self.compared: list[dict[str, Any]] = []

    @property
    def trials(self) -> int:
        """Most models that are submitted: searches, comparisons, candidates."""
        comparisons = 0 if self.compare is None else self.seeds
        return self.candidates + len(self.searches) * self.seeds + comparisons

    def extra_repr(self) -> str:
        return f"searches={list(self.searches)}, seeds={self.seeds}, seed={self.seed}"

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        super()._initialize(model_space, engine)
        recipe = supernet_recipe(self.recipe, model_space.evaluator.recipe)
        if recipe is None:
            raise UserError(
                "strategy.supernet is missing: neither it nor evaluator.train says how to train"
            )
        if recipe.devices != 1:
            raise UserError(
                f"strategy.supernet.devices: {recipe.devices!r} is not allowed; 1 is, for a path "
                "is measured where it was trained"
            )
        check_supernet(model_space)
        for settings in self.searches.values():
            search_recipe(recipe, settings)
            self.encoding = make_encoding(model_space.simplify(), settings.layout)
        return model_space

    def _run(self) -> None:
        evaluator = self.model_space.evaluator
        recipe = as_mapping(supernet_recipe(self.recipe, evaluator.recipe))
        (start,) = draw_distinct(1, self.model_space.simplify(), np.random.RandomState(self.seed))
        shared = {"task": as_mapping(evaluator.task), "train": recipe, "store": evaluator.store}
        for seed in range(self.seed, self.seed + self.seeds):
            for label, settings in self.searches.items():
                if any((f["label"], f["seed"]) == (label, seed) for f in self.found):
                    continue  # of a loaded state
                trial = WideSpectrumTraining(**shared, search=as_mapping(settings), seed=seed)
                record = self.prepare(trial, start, f"the search '{label}' with seed {seed}")
                self.found.append({"label": label, "seed": seed, **record})
            if self.compare is not None and all(c["seed"] != seed for c in self.compared):
                self._compare(seed, shared, start)
        self._evaluate_best(evaluator)

    def _compare(self, seed: int, shared: Mapping[str, Any], start: Sample) -> None:
        assert self.compare is not None
        reference = next(
            f for f in self.found if f["seed"] == seed and f["label"] == self.compare.reference
        )
        trial = SignalComparison(
            **shared,
            searches={label: as_mapping(s) for label, s in self.searches.items()},
            compare=as_mapping(self.compare),
            supernet=reference["key"],
            seed=seed,
        )
        record = self.prepare(trial, start, f"the comparison with seed {seed}")
        self.compared.append({"seed": seed, **record})

    def _evaluate_best(self, evaluator: Any) -> None:
        jobs = [
            (found, row)
            for found in self.found
            for row in found["search"]["finalists"][: self.per_search]
        ]
        metrics = self.evaluate(
            [row["sample"] for _, row in jobs],
            [evaluator.variant(supernet=found["key"]) for found, _ in jobs],
        )
        for (_, row), measured in zip(jobs, metrics, strict=True):
            row["metrics"] = measured

    def state_dict(self) -> dict[str, Any]:
        """Plain values: what the searches and comparisons have found so far."""
        return {"found": self.found, "compared": self.compared}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: no search is made again."""
        self.found, self.compared = list(state_dict["found"]), list(state_dict["compared"])

    def export(self, run: Path) -> None:
        """Write ``wide_spectrum.json``: results, drift, predictor, estimator, cost, stability."""
        if not self.found:
            return
        write_json(
            run / "wide_spectrum.json",
            {
                "searches": [
                    {
                        "label": found["label"],
                        "seed": found["seed"],
                        "key": found["key"],
                        **found["search"],
                    }
                    for found in self.found
                ],
                "stability": self._stability(),
                "comparisons": [
                    {"seed": compared["seed"], **compared["comparison"]}
                    for compared in self.compared
                ],
            },
        )

    def _stability(self) -> list[dict[str, Any]]:
        """How many choices the results of two seeds share, by label; chance is in it too."""
        rows = []
        for label in self.searches:
            results = [f["search"] for f in self.found if f["label"] == label]
            for name in ("best", "last"):
                known = [r[name] for r in results if r[name] is not None]
                shared = [self.encoding.shared(a, b) for a, b in itertools.combinations(known, 2)]
                if shared:
                    rows.append(
                        {
                            "label": label,
                            "result": name,
                            "shared": shared,
                            "choices": self.encoding.choices,
                        }
                    )
        return rows
