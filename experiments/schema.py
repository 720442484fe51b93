"""The experiment file: one YAML mapping, every key checked before any work starts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from nni_robust import registry
from nni_robust.config import as_mapping, parse, read_yaml
from nni_robust.data import absolute_task
from nni_robust.errors import UserError, nearest
from nni_robust.redaction import redact
from nni_robust.task import Task
from nni_robust.training import parse_recipe

from ._sections import Final, NniSettings

__all__ = [
    "Experiment",
    "Final",
    "NniSettings",
    "Part",
    "check_name",
    "find_experiment",
    "load_experiment",
    "shipped",
]


@dataclasses.dataclass(frozen=True)
class Part:
    """A named object and its constructor's arguments: a space, a strategy or an evaluator."""

    name: str
    arguments: dict[str, Any]

    def as_mapping(self) -> dict[str, Any]:
        """As written in the file: the name and the arguments side by side."""
        return {"name": self.name, **self.arguments}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole experiment, with every default filled in."""

    name: str
    task: Task
    space: Part
    strategy: Part
    evaluator: Part
    final: Final | None
    nni: NniSettings
    seed: int

    def as_mapping(self) -> dict[str, Any]:
        """The resolved experiment file; loading it gives the same experiment."""
        return {
            "name": self.name,
            "seed": self.seed,
            "task": as_mapping(self.task),
            "space": self.space.as_mapping(),
            "strategy": self.strategy.as_mapping(),
            "evaluator": self.evaluator.as_mapping(),
            "final": None if self.final is None else as_mapping(self.final),
            "nni": redact(as_mapping(self.nni)),
        }


_SECTIONS = ("name", "seed", "task", "space", "strategy", "evaluator", "final", "nni")
_PARTS = {
    "space": (registry.search_spaces, "robnet"),
    "strategy": (registry.strategies, "robust-one-shot"),
    "evaluator": (registry.evaluators, "adversarial-training"),
}


def shipped(kind: Literal["experiments", "sweeps"] = "experiments") -> list[str]:
    """Names of the experiment files, or of the sweep files, that come with the package."""
    folder = _folder(kind)
    return sorted(f.name[:-4] for f in folder.iterdir() if f.name.endswith(".yml"))


def _folder(kind: str) -> Any:
    folder = files("nni_robust.experiments")
    return folder if kind == "experiments" else folder.joinpath(kind)


def find_experiment(
    name_or_path: str, kind: Literal["experiments", "sweeps"] = "experiments"
) -> Path:
    """Path of a shipped file by its name, or of a file by its path.

    Raises
    ------
    UserError
        If it is neither.
    """
    known = shipped(kind)
    if name_or_path in known:
        return Path(str(_folder(kind).joinpath(f"{name_or_path}.yml")))
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise UserError(
            f"no {kind[:-1]} '{name_or_path}'{nearest(name_or_path, known)} "
            f"(shipped: {', '.join(known)}; or the path of a YAML file)"
        )
    return path


def load_experiment(experiment: str, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment file.

    Parameters
    ----------
    experiment
        Name of a shipped experiment or path of a YAML file.
    overrides
        ``section.key=value`` changes, the value in YAML.

    Raises
    ------
    UserError
        On the first thing that is wrong.
    """
    path = find_experiment(experiment)
    raw = _unshared(read_yaml(path))
    for override in overrides:
        _override(raw, override)
    settings = _check(raw, path.stem)
    # Trials start in another directory: relative folders must mean the same there.
    task = absolute_task(settings.task)
    if not Path(task.root or task.dataset.partition(":")[2]).exists():
        task = dataclasses.replace(task, root=settings.task.root, dataset=settings.task.dataset)
    return dataclasses.replace(settings, task=task)


def _unshared(value: Any) -> Any:
    """A copy without YAML's aliases, so that a change of one section changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not allowed; section.key=value is")
    *path, last = key.split(".")
    place = raw
    for part in path:
        if place.get(part) is None:
            place[part] = {}
        elif isinstance(place[part], str) and part in (*_PARTS, "task"):  # its name alone
            place[part] = {"name": place[part]}
        place = place[part]
        if not isinstance(place, dict):
            raise UserError(f"--set {override!r}: '{part}' is no section")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: the value is not valid YAML") from None


def _check(raw: Mapping[str, Any], stem: str) -> Experiment:
    for key in raw:
        if key not in _SECTIONS:
            raise UserError(
                f"unknown key '{key}' in the experiment{nearest(str(key), _SECTIONS)} "
                f"(allowed: {', '.join(_SECTIONS)})"
            )
    seed = raw.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed: {seed!r} is not allowed; a whole number >= 0 is")
    return Experiment(
        name=check_name("name", raw.get("name", stem)),
        task=_task(raw.get("task")),
        **{section: _part(section, raw.get(section)) for section in _PARTS},
        final=_final(raw.get("final", {})),
        nni=parse(NniSettings, raw.get("nni"), "nni"),
        seed=seed,
    )


#: Bytes; file systems take 255, and ``-2`` and the like come after it.
_LONGEST_NAME = 200


def check_name(key: str, value: Any) -> str:
    """A name that is also a folder's: it must not lead out of the folder that it is made in.

    Raises
    ------
    UserError
        If it is another path, or no name.
    """
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(c in "/\\" or not c.isprintable() for c in name)
        or name != name.strip()
        or len(name.encode()) > _LONGEST_NAME
    ):
        raise UserError(
            f"{key}: {value!r} is not allowed; a plain folder name without / and \\ is, of at most "
            f"{_LONGEST_NAME} bytes"
        )
    return name


def _final(value: Any) -> Final | None:
    """The final phase; what a recipe says of its own keys gets the section's name."""
    if value is None:
        return None
    if isinstance(value, Mapping) and isinstance(value.get("train"), Mapping):
        value = {**value, "train": parse_recipe(value["train"], "final.train")}
    return parse(Final, value, "final")


def _task(value: Any) -> Task:
    """A mapping of settings; the name of a task or task file; or a name with changes."""
    if not isinstance(value, str) and not (isinstance(value, Mapping) and "name" in value):
        return parse(Task, value, "task")
    from nni_robust.tasks import load_task_file

    name, changes = (value, {}) if isinstance(value, str) else (value["name"], dict(value))
    changes.pop("name", None)
    return parse(Task, {**as_mapping(load_task_file(str(name))), **changes}, "task")


#: Arguments that the runner gives; a file must not.
_GIVEN: dict[str, tuple[str, ...]] = {
    "space": ("num_classes",),
    "strategy": (),
    "evaluator": (
        "task",
        "store",
        "supernet",
        "phase",
        "split",
        "eps_values",
        "steps",
        "corruptions",
        "examples",
    ),
}


def _part(section: str, value: Any) -> Part:
    known, default = _PARTS[section]
    if value is None:
        value = {}
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise UserError(f"{section}: expected a name or a mapping with 'name', got {value!r}")
    arguments = copy.deepcopy(dict(value))
    name = arguments.pop("name", default)
    if not isinstance(name, str):
        raise UserError(
            f"{section}.name: {name!r} is not allowed; allowed: {', '.join(known.names())}"
        )
    allowed = registry.constructor_arguments(known.get(name))
    if allowed is not None:
        for key in arguments:
            usable = [a for a in allowed if a not in _GIVEN[section]]
            if key not in usable:
                raise UserError(
                    f"unknown key '{key}' in {section} '{name}'{nearest(key, usable)} "
                    f"(allowed: {', '.join(['name', *usable])})"
                )
    return Part(name, arguments)
