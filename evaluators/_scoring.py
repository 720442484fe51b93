"""What a trained network is worth: accuracies under attacks or over a spectrum of strengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nni_robust.data import Images
from nni_robust.evaluation import evaluate, progress_folder
from nni_robust.reliability import Reliability, need_reliability
from nni_robust.threat import ThreatModel

__all__ = ["Score", "attack_score", "spectrum_score"]


@dataclasses.dataclass(frozen=True)
class Score:
    """What a network is worth.

    Parameters
    ----------
    metrics
        Accuracies in [0, 1]; ``"default"`` decides.
    more
        What else the record says.
    reliability
        Which checks of the metrics ran, and which failed.
    seconds
        Wall time.
    """

    metrics: dict[str, float]
    more: dict[str, Any]
    reliability: Reliability
    seconds: float

    def __post_init__(self) -> None:
        need_reliability(self)


def attack_score(
    network: nn.Module,
    pictures: Images,
    attacks: Sequence[Any],
    threat: ThreatModel,
    *,
    limit: int | None,
    seed: int,
    folder: Path | None = None,
) -> Score:
    """Clean accuracy and one per attack; the lowest under attack (or the clean one) decides.

    What attacks found is kept in `folder`, by the network's weights, to go on after a kill.
    """
    found = evaluate(
        network,
        pictures,
        attacks,
        threat=threat,
        limit=limit,
        seed=seed,
        folder=None if folder is None or not attacks else progress_folder(folder, network),
    )
    metrics = found.metrics()
    robust = [value for name, value in metrics.items() if name != "clean"]
    decides = min(robust) if robust else metrics["clean"]
    return Score(
        {"default": decides, **metrics}, {"pictures": found.n}, found.reliability, found.seconds
    )


def spectrum_score(
    network: nn.Module,
    pictures: Images,
    strengths: Sequence[Any],
    weights: Sequence[float] | None,
    attacks: Sequence[Any],
    threat: ThreatModel,
    *,
    limit: int | None,
    seed: int,
    folder: Path | None = None,
) -> Score:
    """Clean accuracy and one per strength, whose weighted average decides.

    The first attack goes over the strengths; further ones only have the threat's eps. What was
    found is kept as by :func:`attack_score`.
    """
    from nni_robust.spectrum import evaluate_spectrum

    found = evaluate_spectrum(
        network,
        pictures,
        strengths,
        attack=_without_ball(attacks[0]),
        norm=threat.norm,
        weights=weights,
        limit=limit,
        seed=seed,
        folder=None if folder is None else progress_folder(folder, network),
    )
    metrics, seconds = {"default": found.average, **found.metrics()}, found.seconds
    reliability = found.reliability
    if len(attacks) > 1:
        more = attack_score(
            network, pictures, attacks[1:], threat, limit=limit, seed=seed, folder=folder
        )
        metrics, seconds = {**more.metrics, **metrics}, seconds + more.seconds
        reliability = reliability.merged(more.reliability)
    spectrum = [list(point) for point in found.curve()]
    kept = {"pictures": found.n, "spectrum": spectrum, "passes": found.passes}
    return Score(metrics, kept, reliability, seconds)


def _without_ball(attack: Any) -> Any:
    """An attack without eps and norm, which the strengths give."""
    if not isinstance(attack, Mapping):
        return attack
    return {key: value for key, value in attack.items() if key not in ("eps", "norm")}
