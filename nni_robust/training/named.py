"""Recipes by name: the published ways to train, as YAML files beside this module.

A recipe's file holds the settings of :class:`~nni_robust.training.Recipe` and may hold the
``threat`` that they are meant for. Its comments say where each value comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from nni_robust.config import parse, read_yaml
from nni_robust.errors import UserError, nearest
from nni_robust.threat import ThreatModel
from nni_robust.training.recipe import Recipe

__all__ = ["NamedRecipe", "list_recipes", "load_recipe"]

_FOLDER = Path(__file__).parent / "recipes"


@dataclasses.dataclass(frozen=True)
class NamedRecipe:
    """A recipe and what it is called.

    Parameters
    ----------
    name
        Its name, or the path of its file.
    recipe
        The settings.
    threat
        The ball that it is meant for; None where the file does not say.
    about
        What the file says of it in the comment at its top: whose recipe it is, in which values it
        differs, what is unverified.
    """

    name: str
    recipe: Recipe
    threat: ThreatModel | None
    about: str = ""


def list_recipes() -> list[str]:
    """Names of the recipes that come with this library, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, changes: Mapping[str, Any] | None = None) -> NamedRecipe:
    """A recipe that comes with this library, or one from a file.

    Parameters
    ----------
    name_or_path
        A name that :func:`list_recipes` gives, or the path of a YAML file.
    changes
        Settings to lay over the file's, such as ``{"epochs": 2, "attack": {"steps": 3}}``.

    Raises
    ------
    UserError
        If there is no such recipe or file, or a setting is impossible.

    Examples
    --------
    >>> load_recipe("robnet-cifar10", {"batch_size": 64}).recipe.milestones
    (100.0, 150.0)
    """
    name = str(name_or_path)
    if name in list_recipes():
        path = _FOLDER / f"{name}.yaml"
    elif Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        path = Path(name)
    else:
        known = list_recipes()
        raise UserError(
            f"unknown recipe '{name}'{nearest(name, known)} (known: {', '.join(known)}; or the "
            "path of a YAML file)"
        )
    settings = _overlaid(read_yaml(path), changes or {})
    threat = settings.pop("threat", None)
    return NamedRecipe(
        name,
        parse(Recipe, settings, "recipe"),
        None if threat is None else parse(ThreatModel, threat, "recipe.threat"),
        _comment(path),
    )


def _comment(path: Path) -> str:
    """The comment that a file begins with, without its number signs."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line[2:] for line in takewhile(lambda line: line.startswith("#"), lines))


def _overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second laid over the first."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _overlaid(old, value)
        merged[key] = value
    return merged
