"""After the search: the winner and its rivals are trained from scratch and tested.

Only here is the test split opened. The three networks are NNI trials like the candidates, so they
run side by side, on any machine, and their curves are in the web UI.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nni.nas.space import ModelStatus

from nni_robust.architecture import Architecture
from nni_robust.config import as_mapping
from nni_robust.data import DataSplits
from nni_robust.errors import UserError
from nni_robust.nni_adapter.waiting import wait_for
from nni_robust.sampling import draw_distinct
from nni_robust.store import Store, content_key, read_records, write_json
from nni_robust.training import Recipe

from .schema import Experiment

__all__ = [
    "best_candidate",
    "count_networks",
    "final_evaluator",
    "finish",
    "save_best",
    "undefended",
]


def best_candidate(run: Path, winner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The candidate with the best score; of equals the cheaper, then the earlier one.

    Parameters
    ----------
    run
        Run folder with ``candidates.jsonl``.
    winner
        Sample of the candidate that the strategy prefers, whatever its score.

    Raises
    ------
    UserError
        If no candidate has a score.
    """
    scored = [
        r
        for r in read_records(run / "candidates.jsonl")
        if r["phase"] == "candidate" and r["status"] == "ok"
        if winner is None or content_key(r["sample"]) == content_key(dict(winner))
    ]
    if not scored:
        raise UserError(f"zero candidates left: no candidate in '{run}' has a score")
    return min(
        scored,
        key=lambda r: (-r["metrics"]["default"], r["metrics"].get("macs", 0), r["index"]),
    )


def save_best(
    run: Path, experiment: Experiment, data: DataSplits, best: Mapping[str, Any]
) -> Architecture:
    """Write ``best.yaml``: the winner of the search (its record), without weights yet."""
    architecture = _architecture(
        experiment,
        data,
        best["sample"],
        f"{experiment.name}-best",
        f"best of the search by {experiment.strategy.name}, score {best['metrics']['default']:.4f}",
    )
    architecture.save(run / "best.yaml")
    return architecture


def count_networks(experiment: Experiment) -> int:
    """Trials of the final phase."""
    return 0 if experiment.final is None else 1 + len(experiment.final.rivals)


def final_evaluator(
    experiment: Experiment, evaluator: Any, label: str, learned: Mapping[str, Any]
) -> Any:
    """The evaluator of a final network.

    Parameters
    ----------
    evaluator
        That of the candidates.
    label
        Which network: ``"best"``, or one of ``final.rivals``.
    learned
        See :func:`finish`.

    Raises
    ------
    UserError
        If settings do not go together.
    """
    final = experiment.final
    assert final is not None
    changes = {
        "split": "test",
        "attacks": final.attacks,
        "score_limit": final.limit,
        "supernet": None,
        "eps_values": _strengths(experiment),
        **({"steps": final.steps} if final.steps else {}),
        **({"corruptions": final.corruptions} if final.corruptions else {}),
        **({"examples": final.examples} if final.examples else {}),
        **({"inherit": None, "inherit_options": None} if _inherits(evaluator) else {}),
        **learned,
    }
    recipe = undefended(final.train) if label == "undefended" else final.train
    return evaluator.variant(phase=f"final {label}", train=as_mapping(recipe), **changes)


def undefended(recipe: Recipe) -> Recipe:
    """The same training on clean pictures; what only adversarial training has is off."""
    return dataclasses.replace(recipe, loss="clean", clean_epochs=0, replays=1)


def _strengths(experiment: Experiment) -> list[float]:
    """Strengths of the curve, in pixel units; in L∞ none is above 1, the whole range of pixels."""
    assert experiment.final is not None
    threat = experiment.task.threat
    most = 1.0 if threat.norm == "linf" else math.inf
    return sorted({round(min(threat.eps * f, most), 10) for f in experiment.final.eps_factors})


def finish(
    run: Path,
    experiment: Experiment,
    data: DataSplits,
    space: Any,
    engine: Any,
    best: Mapping[str, Any],
    learned: Mapping[str, Any],
    on_begin: Callable[[], None],
) -> dict[str, Any] | None:
    """Train and test the winner and its rivals; write ``final.json`` and the winner's weights.

    Parameters
    ----------
    space
        The experiment's executable model space (NNI's), which makes the models.
    engine
        The running engine.
    best
        The winner's record.
    learned
        Changes of the evaluator that the search came to besides the architecture, such as the
        tutors of a distillation; all final networks get them.
    on_begin
        Called before the first of them is trained.

    Returns
    -------
    The content of ``final.json``, or None where the experiment has no final phase.

    Raises
    ------
    UserError
        If the winner's final training failed.
    """
    final = experiment.final
    if final is None or not hasattr(space.evaluator, "variant"):
        return None
    jobs = [("best", best["sample"], "best of the search, adversarially trained")]
    left_out = []
    if "random" in final.rivals:
        rival, note = _equal_budget(experiment, data, space, best["sample"])
        if rival is None:
            left_out.append({"label": "random", "metrics": {}, "note": note})
        else:
            jobs.append(("random", rival, note))
    if "undefended" in final.rivals:
        jobs.append(("undefended", best["sample"], "the best architecture, trained on clean data"))

    models = []
    for label, sample, _ in jobs:
        model = space.freeze(sample)
        model.evaluator = final_evaluator(experiment, space.evaluator, label, learned)
        models.append(model)
    on_begin()
    engine.budget = engine.submitted + len(models)
    for model in models:
        engine.submit_models(model)
    wait_for(engine, models)

    store = Store(space.evaluator.store)
    networks: list[dict[str, Any]] = []
    for (label, sample, note), model in zip(jobs, models, strict=True):
        key = model.evaluator.key(model)
        record = store.result(key)
        if model.status != ModelStatus.Trained or record is None:
            if label == "best":
                why = store.failure(key) or "see the trial's log in NNI's web UI"
                raise UserError(f"the final training of the best architecture failed: {why}")
            networks.append({"label": label, "metrics": {}, "note": f"{note}; its training failed"})
            continue
        file = f"{label}.yaml"
        architecture = _architecture(experiment, data, sample, f"{experiment.name}-{label}", note)
        weights = run / f"{label}.safetensors"
        shutil.copyfile(store.folder(key) / "weights.safetensors", weights)
        dataclasses.replace(architecture, weights=weights).save(run / file)
        networks.append(
            {
                "label": label,
                "architecture": file,
                "metrics": record["metrics"],
                "pictures": record["pictures"],
                "reliability": record.get("reliability"),
                "eps_curve": record.get("eps_curve", []),
                "steps_curve": record.get("steps_curve", []),
                **({"corruptions": record["corruptions"]} if "corruptions" in record else {}),
                "examples": _copy_examples(store.folder(key), run, label),
                "history": record["history"],
                "kept_epoch": record.get("kept_epoch"),
                "note": note,
            }
        )
    networks += left_out
    outcome = {"threat": as_mapping(experiment.task.threat), "split": "test", "networks": networks}
    write_json(run / "final.json", outcome)
    return outcome


def _copy_examples(trial: Path, run: Path, label: str) -> list[str]:
    """The trial's attacked pictures into the run folder; their files, relative to it."""
    kept = []
    for source in sorted((trial / "examples").glob("*.safetensors")):
        target = run / "examples" / label / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        kept.append(target.relative_to(run).as_posix())
    return kept


def _inherits(evaluator: Any) -> bool:
    """Whether candidates start from a teacher's weights, a shortcut to their score.

    Final networks do not: they are to show what their architecture is worth.
    """
    return getattr(evaluator, "inherit", None) is not None


def _architecture(
    experiment: Experiment, data: DataSplits, sample: dict[str, Any], name: str, note: str
) -> Architecture:
    return Architecture(
        name=name,
        space=experiment.space.name,
        space_args=dict(experiment.space.arguments),
        sample=dict(sample),
        provenance={
            "kind": "found",
            "source": f"nni-robust run {experiment.name}, seed {experiment.seed}, {data.name}, "
            f"{experiment.task.threat}",
            "note": note,
        },
        num_classes=data.num_classes,
        input_shape=data.input_shape,
    )


def _equal_budget(
    experiment: Experiment, data: DataSplits, space: Any, best: dict[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """The random architecture nearest to the winner in MACs, among a number of draws, and a note.

    None where the space has no other architecture than the winner.
    """
    assert experiment.final is not None
    wanted = experiment.final.rival_draws
    draws = draw_distinct(
        wanted,
        space.mutables,
        np.random.RandomState(experiment.seed + 1),
        exclude=[best],
        fewer=True,
    )
    if not draws:
        return None, "left out: the space has no other architecture than the winner"
    shape = data.input_shape
    aim = _architecture(experiment, data, best, "best", "").cost(shape).macs
    costs = [_architecture(experiment, data, s, "random", "").cost(shape).macs for s in draws]
    nearest = min(range(len(draws)), key=lambda i: (abs(costs[i] - aim), i))
    few = "" if len(draws) == wanted else f", all that were found (final.rival_draws: {wanted})"
    return draws[nearest], (
        "random architecture of equal budget: nearest in MACs "
        f"({costs[nearest] / aim - 1:+.1%}) of "
        f"{len(draws)} draws{few}"
    )
