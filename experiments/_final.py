"""After the search: the winner and its rivals are trained from scratch and tested.

Only here is the test split opened. The three networks are NNI trials like the candidates, so they
run side by side, on any machine, and their curves are in the web UI.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
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

from .schema import Experiment

__all__ = ["best_candidate", "count_networks", "finish", "save_best"]


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


def finish(
    run: Path,
    experiment: Experiment,
    data: DataSplits,
    space: Any,
    engine: Any,
    best: Mapping[str, Any],
    learned: Mapping[str, Any],
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
    eps = experiment.task.threat.eps
    common = {
        "split": "test",
        "attacks": final.attacks,
        "score_limit": final.limit,
        "supernet": None,
        "eps_values": sorted({round(eps * f, 10) for f in final.eps_factors if eps * f <= 1}),
        **({"steps": final.steps} if final.steps else {}),
        **({"corruptions": final.corruptions} if final.corruptions else {}),
        **({"examples": final.examples} if final.examples else {}),
        **({"inherit": None, "inherit_options": None} if _inherits(space.evaluator) else {}),
        **learned,
    }
    robust = as_mapping(final.train)
    clean = as_mapping(dataclasses.replace(final.train, loss="clean"))
    jobs = [("best", best["sample"], robust, "best of the search, adversarially trained")]
    if "random" in final.rivals:
        rival, note = _equal_budget(experiment, data, space, best["sample"])
        jobs.append(("random", rival, robust, note))
    if "undefended" in final.rivals:
        jobs.append(
            ("undefended", best["sample"], clean, "the best architecture, trained on clean data")
        )

    models = []
    for label, sample, recipe, _ in jobs:
        model = space.freeze(sample)
        model.evaluator = space.evaluator.variant(phase=f"final {label}", train=recipe, **common)
        models.append(model)
    engine.budget = engine.submitted + len(models)
    for model in models:
        engine.submit_models(model)
    wait_for(engine, models)

    store = Store(space.evaluator.store)
    networks: list[dict[str, Any]] = []
    for (label, sample, _, note), model in zip(jobs, models, strict=True):
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
) -> tuple[dict[str, Any], str]:
    """The random architecture nearest to the winner in MACs, among a number of draws."""
    assert experiment.final is not None
    draws = draw_distinct(
        experiment.final.rival_draws,
        space.mutables,
        np.random.RandomState(experiment.seed + 1),
        exclude=[best],
    )
    shape = data.input_shape
    aim = _architecture(experiment, data, best, "best", "").cost(shape).macs
    costs = [_architecture(experiment, data, s, "random", "").cost(shape).macs for s in draws]
    nearest = min(range(len(draws)), key=lambda i: (abs(costs[i] - aim), i))
    return draws[nearest], (
        "random architecture of equal budget: nearest in MACs "
        f"({costs[nearest] / aim - 1:+.1%}) of "
        f"{len(draws)} draws"
    )
