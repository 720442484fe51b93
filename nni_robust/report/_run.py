"""Read a run folder for reporting: whatever is there, and a sentence about whatever is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_robust.config import parse, read_yaml
from nni_robust.errors import UserError
from nni_robust.report._format import number
from nni_robust.store import read_json, read_records
from nni_robust.threat import ThreatModel, eps_label

__all__ = [
    "Record",
    "Run",
    "attack_keys",
    "is_chosen",
    "is_ok",
    "metric",
    "read_run",
    "strongest_attack",
    "unreliable",
]

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """Contents of a run folder; empty where a file is missing.

    Parameters
    ----------
    folder
        Where it lies.
    config, status, final
        ``config.yaml``, ``run.json`` and ``final.json``.
    supernets, candidates
        Records of ``candidates.jsonl`` by phase.
    problems
        Sentences about files that are missing or damaged.
    """

    folder: Path
    config: dict[str, Any]
    status: dict[str, Any]
    final: dict[str, Any]
    supernets: tuple[Record, ...]
    candidates: tuple[Record, ...]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's own name, else the folder's."""
        return str(self.status.get("name") or self.config.get("name") or self.folder.resolve().name)

    @property
    def state(self) -> str:
        """``"running"``, ``"finished"``, ``"failed"``, ``"interrupted"`` or ``"unknown"``."""
        return str(self.status.get("status") or "unknown")

    @property
    def task(self) -> dict[str, Any]:
        """The task section of the config."""
        task = self.config.get("task")
        return task if isinstance(task, dict) else {}

    @property
    def threat(self) -> ThreatModel | None:
        """The threat model: that of the final evaluation, else that of the task, else None."""
        for section in (self.final.get("threat"), self.task.get("threat")):
            if isinstance(section, Mapping):
                try:
                    return parse(ThreatModel, section, "threat")
                except UserError:
                    continue
        return None

    @property
    def networks(self) -> list[dict[str, Any]]:
        """The networks of the final evaluation."""
        networks = self.final.get("networks")
        return [n for n in networks if isinstance(n, dict)] if isinstance(networks, list) else []


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Parameters
    ----------
    folder
        Folder with at least one of ``config.yaml``, ``run.json``, ``candidates.jsonl``.

    Raises
    ------
    UserError
        If there is no such folder, or it holds none of these files.
    """
    folder = Path(folder)
    names = ("config.yaml", "run.json", "candidates.jsonl")
    if not folder.is_dir():
        raise UserError(f"no run folder '{folder}'")
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"'{folder}' is no run folder: it holds none of {', '.join(names)}")
    problems: list[str] = []

    def mapping(name: str, what: str) -> dict[str, Any]:
        path = folder / name
        if not path.is_file():
            problems.append(f"There is no {name}: {what}")
            return {}
        try:
            value = read_yaml(path) if path.suffix == ".yaml" else read_json(path)
        except UserError as e:
            problems.append(f"{name} cannot be read: {e}")
            return {}
        if not isinstance(value, dict):
            problems.append(f"{name} holds no mapping: {what}")
            return {}
        return value

    config = mapping("config.yaml", "the settings of this run are not known.")
    status = mapping("run.json", "state, versions and machine of this run are not known.")
    final = mapping("final.json", "no network has been evaluated on the test split yet.")
    try:
        records = _settled(read_records(folder / "candidates.jsonl"))
    except UserError as e:
        problems.append(f"candidates.jsonl cannot be read: {e}")
        records = []
    return Run(
        folder,
        config,
        status,
        final,
        tuple(r for r in records if r.get("phase") == "supernet"),
        tuple(r for r in records if r.get("phase", "candidate") == "candidate"),
        tuple(problems),
    )


def _settled(records: Sequence[Any]) -> list[Record]:
    """Records without the failures of trials that a later attempt finished."""
    mappings = [r for r in records if isinstance(r, Mapping)]
    done = {r["key"] for r in mappings if r.get("key") and is_ok(r)}
    return [r for r in mappings if is_ok(r) or r.get("key") not in done]


def is_ok(record: Record) -> bool:
    """True for a trial that ended with metrics."""
    return record.get("status", "ok") == "ok" and isinstance(record.get("metrics"), Mapping)


def is_chosen(record: Record, best: Mapping[str, Any] | None) -> bool:
    """Whether a candidate is the best architecture (facts of it, with its ``sample``)."""
    return best is not None and bool(best["sample"]) and record.get("sample") == best["sample"]


def metric(record: Record, key: str) -> float | None:
    """A metric of a record or network as a finite float, None where it has none."""
    metrics = record.get("metrics")
    return number(metrics.get(key)) if isinstance(metrics, Mapping) else None


def unreliable(record: Record) -> list[str]:
    """Why the figures of a record or network cannot be believed; empty where nothing says so."""
    flags = record.get("reliability")
    reasons = flags.get("unreliable") if isinstance(flags, Mapping) else None
    return [str(reason) for reason in reasons] if isinstance(reasons, list) else []


def attack_keys(records: Iterable[Record]) -> list[str]:
    """Every attack metric (``"pgd20@8/255"``, …) of the records, in order of first appearance."""
    keys: dict[str, None] = {}
    for record in records:
        metrics = record.get("metrics")
        if isinstance(metrics, Mapping):
            keys.update(dict.fromkeys(key for key in metrics if "@" in key))
    return list(keys)


def strongest_attack(records: Sequence[Record], threat: ThreatModel | None = None) -> str | None:
    """The attack metric that stands for "robust": the one with the lowest mean accuracy.

    Parameters
    ----------
    records
        Records or networks with metrics. Only attacks that all measured records have are compared
        where there are such.
    threat
        Where attacks of this threat's eps were measured, only they count.

    Returns
    -------
    str or None
        A metric key; None where nothing was attacked.
    """
    measured = [r for r in records if is_ok(r) and attack_keys([r])]
    keys = attack_keys(measured)
    if threat is not None:
        keys = [k for k in keys if k.endswith(f"@{eps_label(threat.eps)}")] or keys
    keys = [k for k in keys if all(metric(r, k) is not None for r in measured)] or keys
    mean = {}
    for key in keys:
        values = [v for r in measured if (v := metric(r, key)) is not None]
        if values:
            mean[key] = sum(values) / len(values)
    return min(reversed(mean), key=lambda key: mean[key], default=None)
