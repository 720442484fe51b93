"""An entry for RobustBench's leaderboard: the JSON file per model of its ``model_info`` folder.

Croce et al., "RobustBench: a standardized adversarial robustness benchmark", NeurIPS 2021 Datasets
and Benchmarks, https://arxiv.org/abs/2010.09670. Fields are those of its repository; accuracies are
texts in percent with two decimals. Only AutoAttack on its full test set counts there, so other
figures give no entry. The benchmark's own run of AutoAttack decides in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nni_robust.errors import UserError
from nni_robust.threat import eps_label

from ._records import Trained

__all__ = ["leaderboard_entry"]

#: Data sets of the leaderboard, and how many pictures an entry is measured on.
_PICTURES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}

_NORMS = {"linf": "Linf", "l2": "L2"}


def leaderboard_entry(trained: Trained) -> tuple[str, dict[str, Any]]:
    """The entry of a network, and where it belongs in RobustBench's repository.

    Parameters
    ----------
    trained
        With an evaluation on the test pictures of CIFAR-10, CIFAR-100 or ImageNet under
        ``autoattack``.

    Returns
    -------
    tuple[str, dict]
        ``"model_info/cifar10/Linf"``, and the entry. Title, authors, link and venue are not known
        here and stand as ``"FILL IN"``; so does `additional_data`, unless the training is recorded
        to have used the data set alone and no teacher.

    Raises
    ------
    UserError
        If there is no such evaluation.
    """
    evaluations = [e for e in trained.evaluations if _autoattack(e) is not None]
    if not evaluations:
        raise UserError(
            "--robustbench needs AutoAttack's accuracy; measure it with `nni-robust evaluate "
            "… --attacks autoattack --json` and add the file with --results"
        )
    evaluation = evaluations[-1]
    dataset, split = evaluation.get("dataset"), evaluation.get("split")
    if dataset not in _PICTURES or split != "test":
        raise UserError(
            f"--robustbench: the {split} pictures of '{dataset}' are not allowed; test pictures of "
            f"{', '.join(_PICTURES)} are"
        )
    pictures = evaluation.get("pictures") or 0
    if pictures < _PICTURES[dataset]:
        raise UserError(
            f"--robustbench: {pictures} pictures are not allowed; the leaderboard counts "
            f"{_PICTURES[dataset]:,} of {dataset}"
        )
    key = _autoattack(evaluation)
    threat, metrics = evaluation["threat"], evaluation["metrics"]
    assert key is not None
    entry: dict[str, Any] = {
        "link": _FILL,
        "name": _FILL,
        "authors": _FILL,
        "additional_data": _additional_data(trained.training, dataset),
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": _FILL,
        "architecture": trained.architecture.name,
        "eps": eps_label(threat["eps"]),
        "clean_acc": _percent(metrics["clean"]),
        "reported": _percent(metrics[key]),
        "autoattack_acc": _percent(metrics[key]),
        "footnote": "Measured by nni-robust's AutoAttack; RobustBench's own run is to confirm it.",
    }
    if evaluation.get("flags"):
        entry["unreliable"] = True
    return f"model_info/{dataset}/{_NORMS[threat['norm']]}", entry


_FILL = "FILL IN"


def _autoattack(evaluation: Mapping[str, Any]) -> str | None:
    """The key of AutoAttack's standard version at the evaluation's own strength."""
    threat = evaluation.get("threat")
    if not isinstance(threat, Mapping) or not isinstance(threat.get("eps"), (int, float)):
        return None
    key = f"autoattack@{eps_label(threat['eps'])}"
    metrics = evaluation.get("metrics") or {}
    return key if key in metrics and "clean" in metrics else None


def _additional_data(training: Mapping[str, Any] | None, dataset: str) -> bool | str:
    if training is None or training.get("teacher") is not None:
        return _FILL
    return False if (training.get("data") or {}).get("name") == dataset else _FILL


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
