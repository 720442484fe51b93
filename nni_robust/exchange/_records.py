"""What is known about a trained network: read from the folder that it lies in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_robust.architecture import Architecture, list_architectures, load_architecture
from nni_robust.config import read_yaml
from nni_robust.errors import UserError
from nni_robust.store import read_json
from nni_robust.training import read_curve

from ._folder import CONFIG, RESULTS, is_folder

__all__ = [
    "EVALUATION",
    "Trained",
    "evaluation_beside",
    "flags_of",
    "network_file",
    "read_trained",
    "with_results",
]

#: Figures of ``nni-robust train --evaluate`` in its folder, as ``evaluate --json`` prints them.
EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network and its records; what is None or missing is not known.

    Parameters
    ----------
    architecture
        With weights.
    training
        ``data``, ``recipe``, ``threat``, ``seed``, ``seconds`` and the like, as far as known.
    evaluations
        Each with ``dataset``, ``split``, ``pictures``, ``threat``, ``metrics`` (accuracies in
        [0, 1]) and ``flags`` (None: the record has none).
    """

    architecture: Architecture
    training: dict[str, Any] | None = None
    evaluations: tuple[dict[str, Any], ...] = ()

    @property
    def dataset(self) -> str | None:
        """Name of the data that it was trained on, else evaluated on; None where unknown."""
        data = (self.training or {}).get("data") or {}
        names = [data.get("name"), *(e.get("dataset") for e in self.evaluations)]
        return next((str(name) for name in names if name), None)


def read_trained(source: str | Path) -> Trained:
    """A trained network with all that is known about it.

    Parameters
    ----------
    source
        A run folder, a folder of ``nni-robust train``, one of ``nni-robust export``, or an
        architecture file with weights (the records beside it are used where they are about it).

    Raises
    ------
    UserError
        If there is no such network, it has no trained weights, or a record is damaged.
    """
    path = Path(source)
    if is_folder(path):
        results = read_json(path / RESULTS) if (path / RESULTS).is_file() else {}
        training, evaluations = results.get("training"), results.get("evaluations", [])
        return Trained(load_architecture(path), training, tuple(evaluations))
    if path.is_dir():
        path = network_file(path)
    architecture = load_architecture(path if path.suffix else str(source))
    if not architecture.trained:
        raise UserError(
            f"'{source}' has no trained weights to export; `nni-robust train` makes some, and the "
            "final phase of a run does"
        )
    if (path.parent / "final.json").is_file():
        found = _of_run(path)
        if found is not None:
            return Trained(architecture, *found)
    result = path.parent / "result.json"
    if path.name == "architecture.yaml" and result.is_file():
        found_here = Trained(architecture, _of_training(read_json(result), path.parent))
        test = evaluation_beside(path)
        return found_here if test is None else with_results(found_here, [path.parent / EVALUATION])
    return Trained(architecture)


def network_file(folder: str | Path) -> Path:
    """The architecture file of a run's winner or of a training, in its folder.

    Raises
    ------
    UserError
        If there is none.
    """
    for name in ("best.yaml", "architecture.yaml"):
        if (file := Path(folder) / name).is_file():
            return file
    raise UserError(
        f"'{folder}' holds no network: best.yaml (of a run), architecture.yaml (of a "
        f"training) or {CONFIG} (of an export) is needed"
    )


def evaluation_beside(architecture: str | Path) -> dict[str, Any] | None:
    """What ``nni-robust train --evaluate`` measured of the network in its folder, or in a file.

    None where nothing lies beside the file, or something about another network.

    Raises
    ------
    UserError
        If the record is damaged.
    """
    if isinstance(architecture, str) and architecture in list_architectures():
        return None
    path = Path(architecture)
    if path.is_dir() and not is_folder(path):
        path = network_file(path)
    file = path.parent / EVALUATION
    if not path.is_file() or not file.is_file():
        return None
    found = read_json(file)
    about = isinstance(found, dict) and found.get("architecture") == load_architecture(path).name
    return found if about else None


def with_results(trained: Trained, files: Sequence[str | Path]) -> Trained:
    """The same with figures that ``nni-robust evaluate --json`` printed.

    Raises
    ------
    UserError
        If a file holds something else, or figures of another or an untrained network.
    """
    more: list[dict[str, Any]] = []
    for file in files:
        value = read_json(file)
        if not isinstance(value, Mapping) or not isinstance(value.get("metrics"), Mapping):
            raise UserError(f"'{file}' is not what `nni-robust evaluate --json` prints")
        name = trained.architecture.name
        if value.get("architecture") != name or not value.get("trained"):
            what = "an untrained" if value.get("architecture") == name else "another"
            raise UserError(
                f"'{file}' is about {what} network, '{value.get('architecture')}', not '{name}'"
            )
        more.append(
            {
                "source": "nni-robust evaluate",
                **{key: value.get(key) for key in ("dataset", "split", "pictures", "threat")},
                "metrics": _accuracies(value["metrics"]),
                "all_attacks": value.get("all_attacks"),
                "seed": value.get("seed"),
                "seconds": value.get("seconds"),
                "flags": flags_of(value),
            }
        )
    return dataclasses.replace(trained, evaluations=(*trained.evaluations, *more))


def flags_of(record: Mapping[str, Any]) -> list[str] | None:
    """Why a record's figures are unreliable; empty: checked and none, None: not known."""
    for key in ("reliability", "flags", "unreliable"):
        value = record.get(key)
        if isinstance(value, Mapping):
            value = value.get("unreliable")
        if isinstance(value, (list, tuple)):
            return [str(reason) for reason in value]
    return None


def _accuracies(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Clean accuracy and those under attack, without costs and scores."""
    return {k: v for k, v in metrics.items() if k == "clean" or "@" in k}


def _of_training(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What ``result.json`` and the curve of a training say."""
    identity = result.get("training")
    identity = identity if isinstance(identity, Mapping) else {}
    history = [dataclasses.asdict(record) for record in read_curve(folder)]
    return {
        "data": identity.get("data"),
        "recipe": identity.get("recipe"),
        "threat": identity.get("threat"),
        "seed": identity.get("seed"),
        "teacher": identity.get("teacher"),
        "kept_epoch": result.get("kept_epoch"),
        "seconds": _seconds(history),
        "history": history,
    }


def _of_run(path: Path) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]] | None:
    """Training and test of a final network of a run; None where ``final.json`` lacks it."""
    final = read_json(path.parent / "final.json")
    networks = [n for n in final.get("networks", []) if n.get("architecture") == path.name]
    if not networks:
        return None
    network = networks[0]
    config = path.parent / "config.yaml"
    settings = read_yaml(config) if config.is_file() else {}
    task = settings.get("task") or {}
    recipe = dict((settings.get("final") or {}).get("train") or {})
    if network.get("label") == "undefended":
        recipe["loss"] = "clean"
    history = network.get("history") or []
    teacher = task.get("teacher")
    training = {
        "data": {
            "name": task.get("dataset"),
            **{
                key: task.get(key)
                for key in ("validation", "split_seed", "train_limit")
                if task.get(key) is not None
            },
        },
        "recipe": recipe or None,
        "threat": final.get("threat"),
        "seed": settings.get("seed"),
        "teacher": teacher.get("architecture") if isinstance(teacher, Mapping) else None,
        "experiment": settings.get("name"),
        **_machine(path.parent / "run.json"),
        "kept_epoch": network.get("kept_epoch"),
        "seconds": _seconds(history),
        "history": history,
    }
    evaluation = {
        "source": "the run's final evaluation",
        "dataset": task.get("dataset"),
        "split": final.get("split"),
        "pictures": network.get("pictures"),
        "threat": final.get("threat"),
        "metrics": _accuracies(network.get("metrics") or {}),
        "eps_curve": network.get("eps_curve") or [],
        "flags": flags_of(network),
    }
    return training, (evaluation,)


def _machine(path: Path) -> dict[str, Any]:
    """Versions and hardware of a run, as far as its state tells them."""
    state = read_json(path) if path.is_file() else {}
    machine = state.get("machine") or {}
    kept = {k: machine[k] for k in ("platform", "processor", "cores", "gpus") if k in machine}
    return {"versions": state.get("versions"), "machine": kept or None}


def _seconds(history: Sequence[Mapping[str, Any]]) -> float | None:
    values = [record.get("seconds") for record in history]
    if not values or not all(isinstance(v, (int, float)) for v in values):
        return None
    return round(sum(float(v) for v in values if v is not None), 1)
