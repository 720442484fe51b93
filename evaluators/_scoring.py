"""What a trained network is worth: accuracies under attacks or over a spectrum of strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nni_robust.data import Images
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel

__all__ = ["Score", "attack_score", "spectrum_score"]

#: Metrics, what else the record says, and seconds.
Score = tuple[dict[str, float], dict[str, Any], float]


def attack_score(
    network: nn.Module,
    pictures: Images,
    attacks: Sequence[Any],
    threat: ThreatModel,
    *,
    limit: int | None,
    seed: int,
) -> Score:
    """Clean accuracy and one per attack; the lowest under attack (or the clean one) decides."""
    found = evaluate(network, pictures, attacks, threat=threat, limit=limit, seed=seed)
    metrics = found.metrics()
    robust = [value for name, value in metrics.items() if name != "clean"]
    decides = min(robust) if robust else metrics["clean"]
    return {"default": decides, **metrics}, {"pictures": found.n}, found.seconds


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
) -> Score:
    """Clean accuracy and one per strength, whose weighted average decides.

    The first attack goes over the strengths; further ones only have the threat's eps.
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
    )
    metrics, seconds = {"default": found.average, **found.metrics()}, found.seconds
    if len(attacks) > 1:
        more, _, spent = attack_score(
            network, pictures, attacks[1:], threat, limit=limit, seed=seed
        )
        metrics, seconds = {**more, **metrics}, seconds + spent
    spectrum = [list(point) for point in found.curve()]
    return metrics, {"pictures": found.n, "spectrum": spectrum, "passes": found.passes}, seconds


def _without_ball(attack: Any) -> Any:
    """An attack without eps and norm, which the strengths give."""
    if not isinstance(attack, Mapping):
        return attack
    return {key: value for key, value in attack.items() if key not in ("eps", "norm")}
