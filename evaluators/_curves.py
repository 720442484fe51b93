"""What is kept of a final network besides its score: two curves, and a few attacked pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_robust.attacks import attack_from_spec
from nni_robust.corruptions import evaluate_corruptions
from nni_robust.data import Images
from nni_robust.evaluation import eps_curve, progress_folder, steps_curve
from nni_robust.reliability import Reliability
from nni_robust.threat import ThreatModel
from nni_robust.training.weights import write_tensors

__all__ = ["EXAMPLES", "SPACED", "measure_curves", "save_examples"]

#: Folder of attacked pictures inside a trial's folder.
EXAMPLES = "examples"
#: Says in a file's metadata how its pictures were chosen; other files hold broken ones only.
SPACED = "at equal distances"


def measure_curves(
    network: nn.Module,
    pictures: Images,
    threat: ThreatModel,
    *,
    eps_values: Sequence[float],
    steps: Sequence[int],
    corruptions: Sequence[str],
    limit: int | None,
    seed: int,
    folder: Path | None = None,
) -> tuple[dict[str, Any], list[Reliability]]:
    """Accuracy by strength (PGD-20), by number of steps (PGD), and by common corruption.

    What was found is kept in `folder`, by the network's weights, to go on after a kill.

    Parameters
    ----------
    eps_values
        Radii in pixel units; empty leaves that curve out.
    steps
        Numbers of steps; empty leaves that curve out.
    corruptions
        Names, see :func:`nni_robust.corruptions.names_of`; empty leaves them out.
    limit
        Pictures used; None is all.

    Returns
    -------
    tuple
        What a record keeps: the points of each curve, and the corruptions' accuracies; and the
        checks of each.
    """
    record: dict[str, Any] = {}
    checked = []
    more: dict[str, Any] = {"limit": limit, "seed": seed}
    if folder is not None:  # apart from the score, whose spectrum may have other strengths
        more["folder"] = progress_folder(folder, network) / "curves"
    if eps_values:
        curve = eps_curve(network, pictures, eps_values, norm=threat.norm, **more)
        record["eps_curve"] = [list(point) for point in curve]
        checked.append(curve.reliability)
    if steps:
        found = steps_curve(network, pictures, steps, threat=threat, **more)
        record["steps_curve"] = [list(point) for point in found]
        checked.append(found.reliability)
    if corruptions:
        shown = evaluate_corruptions(network, pictures, corruptions, **more)
        record["corruptions"] = shown.as_dict()
        checked.append(shown.reliability)
    return record, checked


def save_examples(
    network: nn.Module,
    pictures: Images,
    attack: Any,
    threat: ThreatModel,
    folder: Path,
    *,
    number: int,
    seed: int,
) -> Path:
    """Attack a few pictures and keep them, for people to look at.

    They lie at equal distances over the whole split, so that they are the same for every network
    and nobody chose them; a split sorted by class still gives several classes.

    Parameters
    ----------
    attack
        Name or mapping.
    folder
        The file is ``<attack's key>.safetensors`` in it, ``/`` and ``@`` replaced by ``_``:
        ``clean`` and ``adversarial`` ((N, C, H, W), float32, in [0, 1]), ``labels``,
        ``predicted_clean``, ``predicted_adversarial`` and ``index`` ((N,), int64), and the texts
        ``pictures``, ``attack``, ``norm``, ``eps`` and ``classes`` (a list as JSON). Pictures that
        held are among them, so it is no file of
        :class:`nni_robust.adversarial.AdversarialExamples`, whose claim is that all are broken.
    number
        Pictures to keep.

    Returns
    -------
    pathlib.Path
        The file.
    """
    count = min(number, len(pictures))
    index = torch.linspace(0, len(pictures) - 1, count).round().long()
    device = next(network.parameters()).device
    x, y = next(pictures.take(index).batches(count, device=device))
    made = attack_from_spec(attack, threat)
    was_training = network.training
    network.eval()
    try:
        adversarial = made(network, x, y, seed=seed, index=index.to(device))
        with torch.no_grad():
            before, after = network(x).argmax(1), network(adversarial).argmax(1)
    finally:
        network.train(was_training)
    tensors = {
        "clean": x.float(),
        "adversarial": adversarial.float(),
        "labels": y,
        "predicted_clean": before,
        "predicted_adversarial": after,
        "index": index,
    }
    # Also a part of the address under which a remote trial uploads it.
    path = folder / f"{re.sub(r'[^A-Za-z0-9.+-]', '_', made.key)}.safetensors"
    texts = {
        "pictures": SPACED,
        "attack": made.key,
        "norm": made.threat.norm,
        "eps": repr(float(made.threat.eps)),
        "classes": json.dumps(list(pictures.class_names)),
    }
    write_tensors(path, {name: t.cpu().contiguous() for name, t in tensors.items()}, texts)
    return path
