"""Settings of a wide-spectrum search, checked before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nni_robust.config import Ratio, as_mapping, parse, strict
from nni_robust.errors import UserError, nearest
from nni_robust.noise import EstimatorRecipe, list_estimators
from nni_robust.objective import SpectrumObjective
from nni_robust.predictor import AlphaSettings, PredictorSettings

__all__ = [
    "SIGNALS",
    "EstimatorSignal",
    "Measure",
    "SearchSettings",
    "WarmStart",
    "Warmup",
    "parse_signals",
]

SIGNALS = ("naive", "estimator", "warm-start")


@dataclasses.dataclass(frozen=True)
class Warmup:
    """Before the logits move.

    Parameters
    ----------
    archs
        Architectures that are drawn, trained and then measured for the memory.
    epochs
        Epochs for each of them before the one after which it is measured.
    """

    archs: int = 100
    epochs: int = 1

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        _at_least("warmup", self, archs=0, epochs=0)


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """The signal ``warm-start``: one attack that climbs from strength to strength.

    Parameters
    ----------
    steps
        Steps at the weakest strength.
    extra
        Steps at each further one.
    rel_step
        Length of a step in units of eps / steps at the weakest strength, of eps / extra at the
        others.
    """

    steps: int = 3
    extra: int = 1
    rel_step: float = 2.5

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        _at_least("measure.warm_start", self, steps=1, extra=1)
        _above("measure.warm_start", self, "rel_step")


@dataclasses.dataclass(frozen=True)
class EstimatorSignal:
    """The signal ``estimator``: real attacks at some strengths, estimated noise at the others.

    Parameters
    ----------
    name
        Of the noise estimator: ``"basic"`` or ``"plus"`` are those of Wsr-NAS.
    real
        Strengths that are attacked; None is every second one, from the weakest on.
    recipe
        How it is trained.
    batches, batch_size
        Batches of training pictures that refill its noise memory before each measurement.
    epochs
        Times through that memory.
    gate_every
        Measurements between two tests whether it is better than rescaled real noise (``scale``);
        where it is not, that is used.
    gate_pictures
        Pictures of that test. They are training pictures, as the noise memory's are, but others.
    """

    name: str = "basic"
    real: tuple[Ratio, ...] | None = None
    recipe: EstimatorRecipe = dataclasses.field(default_factory=EstimatorRecipe)
    batches: int = 10
    batch_size: int = 64
    epochs: int = 1
    gate_every: int = 10
    gate_pictures: int = 64

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        lows = dict.fromkeys(("batches", "batch_size", "epochs", "gate_every", "gate_pictures"), 1)
        _at_least("measure.estimator", self, **lows)
        if self.name not in list_estimators():
            raise UserError(
                f"measure.estimator.name: {self.name!r} is not allowed"
                f"{nearest(self.name, list_estimators())} (allowed: {', '.join(list_estimators())})"
            )


@dataclasses.dataclass(frozen=True)
class Measure:
    """How the losses of an architecture are measured.

    Parameters
    ----------
    steps, rel_step, random_start
        Of the PGD at a strength: its steps have the length rel_step * eps / steps.
    pictures
        Search-validation pictures; None is all of them.
    batch_size
        Pictures at a time.
    recalibrate_batches
        Batches of training pictures for fresh batch-norm statistics of the architecture; 0 takes
        the supernet's.
    warm_start, estimator
        Of these signals.
    """

    steps: int = 7
    rel_step: float = 2.5
    random_start: bool = False
    pictures: int | None = None
    batch_size: int = 256
    recalibrate_batches: int = 8
    warm_start: WarmStart = dataclasses.field(default_factory=WarmStart)
    estimator: EstimatorSignal = dataclasses.field(default_factory=EstimatorSignal)

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        _at_least("measure", self, steps=1, batch_size=1, recalibrate_batches=0)
        if self.pictures is not None:
            _at_least("measure", self, pictures=1)
        _above("measure", self, "rel_step")


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Everything that determines a search besides task, space, training recipe and seed.

    Parameters are those of :class:`WideSpectrumSearch`.
    """

    epochs: int = 200
    warmup: Warmup = dataclasses.field(default_factory=Warmup)
    paths_per_epoch: int = 1
    objective: SpectrumObjective = dataclasses.field(default_factory=SpectrumObjective)
    signal: Literal["naive", "estimator", "warm-start"] = "warm-start"
    measure: Measure = dataclasses.field(default_factory=Measure)
    predictor: PredictorSettings = dataclasses.field(default_factory=PredictorSettings)
    alpha: AlphaSettings = dataclasses.field(default_factory=AlphaSettings)
    tau: float = 0.1
    memory: int = 100
    finalists: int = 8
    mode: Literal["paper_fixed", "legacy"] = "paper_fixed"
    layout: Literal["auto", "labels", "edges"] = "auto"

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        _at_least("strategy", self, epochs=0, paths_per_epoch=1, memory=1, finalists=1)
        _above("strategy", self, "tau")
        if self.warmup.archs + self.epochs == 0:
            raise UserError("strategy.epochs: 0 is not allowed without strategy.warmup.archs")
        real = self.measure.estimator.real
        strengths = self.objective.strengths
        for strength in real or ():
            if strength not in strengths:
                raise UserError(
                    f"strategy.measure.estimator.real: {strength:g} is not allowed; strengths of "
                    f"the objective are ({', '.join(f'{s:g}' for s in strengths)})"
                )
        if real is not None and not real:
            raise UserError(
                "strategy.measure.estimator.real: an empty list is not allowed; at least one "
                "strength is"
            )

    def resolved(self) -> SearchSettings:
        """With everything that the mode decides filled in."""
        legacy = self.mode == "legacy"
        predictor = dataclasses.replace(
            self.predictor,
            kind=self.predictor.kind or ("lstm" if legacy else "linear"),
            head=self.predictor.head or ("legacy" if legacy else "softplus"),
            lr=self.predictor.lr or (1e-3 if legacy else 1e-2),
        )
        alpha = dataclasses.replace(
            self.alpha, lr=(3e-5 if legacy else 3e-4) if self.alpha.lr is None else self.alpha.lr
        )
        objective = self.objective
        if legacy:
            objective = dataclasses.replace(objective, averaging="legacy")
        return dataclasses.replace(self, predictor=predictor, alpha=alpha, objective=objective)

    @property
    def real_strengths(self) -> tuple[float, ...]:
        """Strengths that the signal ``estimator`` attacks."""
        return tuple(self.measure.estimator.real or self.objective.strengths[::2])


def parse_signals(settings: SearchSettings, signals: Any) -> dict[str, SearchSettings]:
    """The searches of a comparison: one for each signal, by label.

    Parameters
    ----------
    settings
        What they have in common.
    signals
        A list of names, or a mapping of labels to changes, such as ``{"warm": {"signal":
        "warm-start", "measure": {"pictures": 64}}}``. None: the settings' own signal.
    """
    if signals is None:
        return {settings.signal: settings}
    if isinstance(signals, Sequence) and not isinstance(signals, str):
        signals = {str(name): {"signal": name} for name in signals}
    if not isinstance(signals, Mapping) or not signals:
        raise UserError(
            f"strategy.signals: {signals!r} is not allowed; a list of signals or a mapping of "
            "labels to settings is"
        )
    found = {}
    for label, changes in signals.items():
        if not isinstance(changes, Mapping):
            raise UserError(f"strategy.signals.{label}: expected a mapping, got {changes!r}")
        merged = _merged(as_mapping(settings), changes)
        found[str(label)] = parse(SearchSettings, merged, f"strategy.signals.{label}")
    return found


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[key] = value
    return merged


def _at_least(where: str, settings: Any, **lows: int) -> None:
    for name, low in lows.items():
        value = getattr(settings, name)
        if value < low:
            raise UserError(f"{where}.{name}: {value} is not allowed; at least {low} is")


def _above(where: str, settings: Any, name: str) -> None:
    value = getattr(settings, name)
    if not 0 < value < math.inf:
        raise UserError(f"{where}.{name}: {value} is not allowed; a number > 0 is")
