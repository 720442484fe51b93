"""Three ways to learn what an architecture loses at every strength, and what each costs.

* ``naive``: an attack from scratch at every strength.
* ``estimator``: Wsr-NAS's way: attacks at some strengths, an AN-Estimator's noise at the others.
* ``warm-start``: one attack that goes on from strength to strength (:mod:`nni_robust.spectrum`).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.data import DataSplits, derive_seed
from nni_robust.data.images import Images
from nni_robust.noise import (
    EstimatorTrainer,
    NoiseEstimator,
    choose_estimator,
    estimate_adversarial,
    make_estimator,
)
from nni_robust.objective import SpectrumObjective
from nni_robust.spectrum import Passes, count_passes, spectrum_losses
from nni_robust.threat import ThreatModel

from ._wide_spectrum_settings import SearchSettings

__all__ = ["Measured", "Signal", "make_signal", "measure_losses"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Measured:
    """Losses of one architecture.

    Parameters
    ----------
    losses
        (1 + strengths,), on the CPU: clean, then by rising strength, averaged as the objective
        says.
    passes
        What it cost, with the preparation of the signal.
    seconds, cpu_seconds
        Wall time, and CPU time of this process.
    """

    losses: Tensor
    passes: Passes
    seconds: float
    cpu_seconds: float


class Signal:
    """Real attacks at every strength, each from scratch; base of the other ways.

    Parameters
    ----------
    settings
        Of the search, resolved.
    threat
        Its norm counts; the strengths are those of the objective.
    data
        Splits on the device of the network.
    seed
        Of random starts and, where there is one, of the estimator.
    """

    name = "naive"

    def __init__(
        self, settings: SearchSettings, threat: ThreatModel, data: DataSplits, seed: int
    ) -> None:
        self.settings, self.threat, self.data, self.seed = settings, threat, data, seed
        self.strengths = settings.objective.strengths

    def prepare(self, network: nn.Module) -> None:
        """What has to be done before a network is measured: nothing here."""

    def losses(self, network: nn.Module, x: Tensor, y: Tensor, first: int) -> Tensor:
        """Cross entropies (N, 1 + strengths) of pictures, the first of which has this number."""
        return self._attacked(network, x, y, first, self._attack(), warm=False, extra=None)[0]

    def tensors(self) -> dict[str, Tensor]:
        """Everything to go on from."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave."""

    def record(self) -> dict[str, Any]:
        """What a report should know about it, JSON-able."""
        return {"name": self.name}

    def _attack(self) -> dict[str, Any]:
        m = self.settings.measure
        return {
            "name": "pgd",
            "steps": m.steps,
            "rel_step": m.rel_step,
            "random_start": m.random_start,
        }

    def _attacked(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        first: int,
        attack: dict[str, Any],
        *,
        warm: bool,
        extra: int | None,
        strengths: tuple[float, ...] | None = None,
    ) -> tuple[Tensor, dict[float, Tensor]]:
        """Losses (N, 1 + strengths), clean ones first, and the attacked pictures by strength."""
        found = spectrum_losses(
            network,
            x,
            y,
            (0.0, *(strengths or self.strengths)),
            attack,
            norm=self.threat.norm,
            warm_start=warm,
            extra=extra,
            seed=derive_seed(self.seed, "measure"),
            index=torch.arange(first, first + len(x), device=x.device),
            batch_size=len(x),
        )
        pictures = {eps: adv for eps, adv in found.adversarial.items() if eps > 0}
        return torch.stack(list(found.losses.values()), 1), pictures


class WarmStartSignal(Signal):
    """One attack that climbs: few steps at the weakest strength, fewer at each further one."""

    name = "warm-start"

    def losses(self, network: nn.Module, x: Tensor, y: Tensor, first: int) -> Tensor:
        """See :class:`Signal`."""
        w = self.settings.measure.warm_start
        attack = {**self._attack(), "steps": w.steps, "rel_step": w.rel_step}
        return self._attacked(network, x, y, first, attack, warm=True, extra=w.extra)[0]


class EstimatedSignal(Signal):
    """Real attacks at some strengths; an estimator, trained along the way, for the others.

    Every so often the estimator has to show, on training pictures that it was not fitted to, that
    its noise is nearer to a real attack's than rescaled noise of the next strength is; as long as
    it is not, that is used instead.
    """

    name = "estimator"

    def __init__(
        self, settings: SearchSettings, threat: ThreatModel, data: DataSplits, seed: int
    ) -> None:
        super().__init__(settings, threat, data, seed)
        how = settings.measure.estimator
        self.real = settings.real_strengths
        self.wanted = tuple(s for s in self.strengths if s not in self.real)
        estimator = make_estimator(how.name, data.input_shape, seed=derive_seed(seed, "estimator"))
        self.trainer = EstimatorTrainer(
            estimator, how.recipe, seed=derive_seed(seed, "estimator-training")
        )
        self.baseline = make_estimator("scale", data.input_shape)
        self.measured, self.fell_back = 0, how.name != "scale"
        self.gates: list[dict[str, Any]] = []

    def prepare(self, network: nn.Module) -> None:
        """Refill the noise memory on training pictures, train the estimator, test it at times."""
        if not self.wanted:
            return
        how = self.settings.measure.estimator
        device = next(network.parameters()).device
        self.trainer.estimator.to(device)
        self.baseline.to(device)
        stream = self.data.train.batches(
            how.batch_size,
            shuffle=True,
            seed=derive_seed(self.seed, "noise-pictures"),
            epoch=self.measured,
        )
        kept = [next(stream, None) for _ in range(how.batches + 1)]
        batches = [batch for batch in kept if batch is not None]
        # The last batch is for the test; with a single one it is for both.
        fitted, tested = batches[: max(len(batches) - 1, 1)], batches[-1]
        self.trainer.refill(network, fitted, self.real, self._attack(), norm=self.threat.norm)
        self.trainer.train(how.epochs)
        if self.measured % how.gate_every == 0:
            x, y = (t[: how.gate_pictures] for t in tested)
            self._gate(network, x, y)
        self.measured += 1

    def _gate(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        _, pictures = self._attacked(network, x, y, 0, self._attack(), warm=False, extra=None)
        choice = choose_estimator(
            self.trainer.estimator, x, pictures, self.wanted, norm=self.threat.norm
        )
        self.fell_back = choice.fell_back
        self.gates.append({"measurement": self.measured, **choice.record()})

    @property
    def estimator(self) -> NoiseEstimator:
        """What is used now."""
        return self.baseline if self.fell_back else self.trainer.estimator

    def losses(self, network: nn.Module, x: Tensor, y: Tensor, first: int) -> Tensor:
        """See :class:`Signal`."""
        real, pictures = self._attacked(
            network, x, y, first, self._attack(), warm=False, extra=None, strengths=self.real
        )
        known = {0.0: real[:, 0], **dict(zip(self.real, real[:, 1:].T, strict=True))}
        if self.wanted:
            self.estimator.to(x.device)
            estimated = estimate_adversarial(
                self.estimator, x, pictures, self.wanted, norm=self.threat.norm
            )
            with torch.no_grad():
                for eps, adv in estimated.items():
                    known[eps] = F.cross_entropy(network(adv).float(), y, reduction="none")
        return torch.stack([known[eps] for eps in (0.0, *self.strengths)], 1)

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`Signal`."""
        return self.trainer.state_dict()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See :class:`Signal`."""
        self.trainer.load_state_dict(tensors)

    def record(self) -> dict[str, Any]:
        """See :class:`Signal`: also every test, and what was decided."""
        return {
            "name": self.name,
            "estimator": self.settings.measure.estimator.name,
            "real": list(self.real),
            "estimated": list(self.wanted),
            "measured": self.measured,
            "fell_back": self.fell_back,
            "gates": self.gates,
        }

    def resume(self, record: dict[str, Any]) -> None:
        """Take up what is not in :meth:`tensors`."""
        self.measured, self.fell_back = record["measured"], record["fell_back"]
        self.gates = list(record["gates"])


def make_signal(
    settings: SearchSettings, threat: ThreatModel, data: DataSplits, seed: int
) -> Signal:
    """The signal that the settings name."""
    kinds = {kind.name: kind for kind in (Signal, WarmStartSignal, EstimatedSignal)}
    return kinds[settings.signal](settings, threat, data, seed)


def measure_losses(
    signal: Signal,
    network: nn.Module,
    pictures: Images,
    objective: SpectrumObjective,
    *,
    batch_size: int,
) -> Measured:
    """Losses of a network on some pictures.

    Parameters
    ----------
    signal
        How to attack.
    network
        In evaluation mode; it is left as it was.
    pictures
        On the network's device.
    objective
        How losses are averaged over pictures.
    batch_size
        Pictures at a time.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    means, sizes = [], []
    with count_passes(network) as passes:
        signal.prepare(network)
        for first, x, y in _numbered(pictures, batch_size):
            means.append(signal.losses(network, x, y, first).mean(0).cpu())
            sizes.append(len(x))
    losses = objective.average(torch.stack(means), torch.tensor(sizes))
    return Measured(losses, passes, time.perf_counter() - wall, time.process_time() - cpu)


def _numbered(pictures: Images, batch_size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    first = 0
    for x, y in pictures.batches(batch_size):
        yield first, x, y
        first += len(x)
