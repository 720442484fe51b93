"""Strict settings: mappings from YAML become frozen dataclasses, or one sentence says why not.

Pydantic does the validation; this module turns its findings into one :class:`UserError` naming the
key, the value and what is allowed, and reads and writes the YAML.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from nni_robust.errors import UserError, nearest

__all__ = [
    "Quantity",
    "Ratio",
    "as_mapping",
    "parse",
    "parse_quantity",
    "parse_ratio",
    "read_yaml",
    "strict",
]

T = TypeVar("T")

#: Put ``__pydantic_config__ = strict`` into a settings dataclass: unknown keys are refused.
strict = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def parse_ratio(value: object) -> object:
    """Turn ``"8/255"`` into a float; anything else is returned as it is."""
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


#: A float that may be written as a fraction, such as ``8/255``.
Ratio = Annotated[float, BeforeValidator(parse_ratio)]


_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_quantity(value: object) -> object:
    """Turn ``"5G"`` or ``"19.2 M"`` into a float; anything else is returned as it is."""
    if isinstance(value, str):
        text = value.strip()
        unit = _UNITS.get(text[-1:], 1.0)
        try:
            return float(text[:-1] if text[-1:] in _UNITS else text) * unit
        except ValueError:
            return value
    return value


#: A number that may be written with a unit: ``k``, ``M``, ``G`` or ``T``.
Quantity = Annotated[float, BeforeValidator(parse_quantity)]


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def parse(cls: type[T], value: Any, where: str) -> T:
    """Build a settings dataclass from a mapping (an instance of it passes through).

    Parameters
    ----------
    cls
        A dataclass with ``__pydantic_config__ = strict``.
    value
        Mapping of its fields, or an instance.
    where
        Path of the section in the user's file, used in messages, such as ``"evaluator.train"``.

    Raises
    ------
    UserError
        On the first unknown key, wrong type or value out of range.
    """
    if isinstance(value, cls):
        return value
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a mapping of settings, got {value!r}")
    try:
        validated: T = _adapter(cls).validate_python(dict(value))  # type: ignore[arg-type]
        return validated
    except ValidationError as e:
        raise UserError(_sentence(cls, e, where)) from None


def _sentence(cls: type[Any], error: ValidationError, where: str) -> str:
    found = error.errors(include_url=False)
    first = found[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # a settings class refused the value in its own words
        return str(cause)
    location = [
        part for part in first["loc"] if not str(part).startswith(("function-", "Annotated"))
    ]
    key = ".".join([where, *map(str, location)])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _descend(cls, location[:-1])
        known = [f.name for f in dataclasses.fields(owner)] if owner else []
        hint = nearest(str(location[-1]), known)
        allowed = f" (allowed: {', '.join(known)})" if known else ""
        return f"unknown key '{location[-1]}' in {'.'.join(key.split('.')[:-1])}{hint}{allowed}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    told = [first["msg"].removeprefix("Value error, ")]
    # Of several kinds of value that a key may have, each says why it is not its own.
    shared, given = first["loc"][:-1], first["input"]
    kinds = [e for e in found if e["loc"] and e["loc"][:-1] == shared and e["input"] is given]
    tagged = all(isinstance(e["loc"][-1], str) for e in kinds)  # numbers are places in a list
    if len(kinds) > 1 and tagged and _descend(cls, location[:-1]) is None:
        key = ".".join([where, *map(str, location[:-1])])
        told = [e["msg"].removeprefix("Value error, ") for e in kinds]
    return f"{key}: {first['input']!r} is not allowed: {'; or: '.join(told)}"


def _descend(cls: Any, path: list[Any]) -> Any:
    """The dataclass at `path` below `cls`, or None where the path leaves dataclasses."""
    import typing

    for part in path:
        hint = typing.get_type_hints(cls).get(str(part)) if dataclasses.is_dataclass(cls) else None
        options = [hint, *typing.get_args(hint)]
        cls = next((o for o in options if dataclasses.is_dataclass(o)), None)
    return cls if dataclasses.is_dataclass(cls) else None


def as_mapping(settings: Any) -> dict[str, Any]:
    """Plain JSON-able dict of a settings dataclass; :func:`parse` of it gives an equal object."""
    adapter = _adapter(type(settings))  # type: ignore[arg-type]
    return dict(adapter.dump_python(settings, mode="json"))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping safely.

    Raises
    ------
    UserError
        If the file is missing, is no YAML, or is not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no file '{path}'") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read '{path}': {e}") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UserError(f"'{path}' is not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"'{path}' must hold a mapping of settings, not {type(value).__name__}")
    return value
