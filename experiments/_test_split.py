"""What the candidates of a finished search score on the test split, with the weights they have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from nni_robust.architecture.space import build_network
from nni_robust.data import load_task
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.store import Store, append_record, read_records
from nni_robust.training.weights import load_weights
from nni_robust.trial import default_device

from .schema import load_experiment

__all__ = ["score_on_test"]


def score_on_test(
    run: str | Path,
    *,
    store: str | Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Attack the networks of all candidates on the test split, as the search did on validation.

    Only after the search: no decision of a run can use it. Results are kept in ``test.jsonl`` in
    the run folder, so that a second call, or one after a kill, goes on.

    Parameters
    ----------
    run
        Run folder whose evaluator trains networks (``adversarial-training``).
    store
        Where the run's trials kept their weights; None is the store in the run folder.
    report
        Takes one line of progress for every twenty networks.

    Returns
    -------
    Key of a trial to its accuracies: ``clean`` and one per attack.

    Raises
    ------
    UserError
        If the run is not finished, or its evaluator trains nothing.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"'{run}' is no run folder")
    settings = load_experiment(str(run / "config.yaml"))
    attacks = settings.evaluator.arguments.get("attacks", ["pgd20"])
    if settings.evaluator.name != "adversarial-training":
        raise UserError(
            f"the evaluator '{settings.evaluator.name}' of '{run}' keeps no weights to attack"
        )
    data = load_task(settings.task, test=True)
    weights = Store(store or run / "store")
    kept = run / "test.jsonl"
    found = {r["key"]: r["metrics"] for r in read_records(kept)}
    records = [
        r
        for r in read_records(run / "candidates.jsonl")
        if r["phase"] == "candidate" and r["status"] == "ok"
    ]
    for number, record in enumerate(records, 1):
        key = str(record["key"])
        if key in found:
            continue
        torch.manual_seed(settings.seed)
        space = settings.space
        network = build_network(space.name, space.arguments, data.num_classes, record["sample"])
        file = weights.folder(key) / "weights.safetensors"
        if not file.is_file():
            raise UserError(f"the weights of a candidate are gone: no '{file}'")
        load_weights(network, file)
        scores = evaluate(
            network.to(default_device()).eval(),
            data.test,
            attacks,
            threat=settings.task.threat,
            limit=settings.evaluator.arguments.get("score_limit"),
            seed=settings.seed,
        )
        found[key] = scores.metrics()
        flags = scores.reliability.as_dict()
        append_record(kept, {"key": key, "metrics": found[key], "reliability": flags})
        if number % 20 == 0 or number == len(records):
            report(f"test split: {number} of {len(records)} networks")
    return found
