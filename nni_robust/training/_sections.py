"""Recipes as sections of a larger file: messages name the section, too."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from nni_robust.config import parse
from nni_robust.errors import UserError
from nni_robust.training.recipe import Recipe

__all__ = ["in_section", "parse_recipe"]

_KEYS = frozenset(field.name for field in dataclasses.fields(Recipe))


def parse_recipe(value: Any, where: str) -> Recipe:
    """:func:`nni_robust.config.parse` for a recipe that is a section of a file.

    Parameters
    ----------
    value
        Mapping of its settings, or a recipe, which passes.
    where
        Path of the section, such as ``"final.train"``.

    Raises
    ------
    UserError
        On the first thing that is wrong, with the section before the key.
    """
    try:
        return parse(Recipe, value, where)
    except UserError as e:
        raise in_section(where, e) from None


def in_section(where: str, error: UserError) -> UserError:
    """What a recipe's check says, with the section before the key.

    A recipe does not know where it stands: it says ``"epochs: -1 is not allowed"``.
    """
    said = str(error)
    if said.startswith((where, "unknown key")):
        return error
    key = re.split(r"[:. ]", said, maxsplit=1)[0]
    return UserError(f"{where}.{said}" if key in _KEYS else f"{where}: {said}")
