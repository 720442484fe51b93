"""Names to objects: spaces, strategies, evaluators, attacks and data sets, ours and third parties'.

Everything that can be named in a YAML file is found here. A package adds its own by declaring an
entry point in one of the groups of :data:`GROUPS`; the core registers its own attacks and data sets
with the decorator. The core never imports the spokes: it meets them only through
:meth:`Registry.get`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from nni_robust.errors import UserError, nearest

__all__ = [
    "GROUPS",
    "Registry",
    "attacks",
    "constructor_arguments",
    "datasets",
    "evaluators",
    "search_spaces",
    "strategies",
]

T = TypeVar("T")


class Registry:
    """One group of named objects.

    Parameters
    ----------
    kind
        What the things are called in messages, such as ``"search space"``.
    group
        Entry-point group, such as ``"nni_robust.search_spaces"``.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._own: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers an object under `name`; a name can be taken only once."""

        def add(obj: T) -> T:
            if name in self._own and self._own[name] is not obj:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._own[name] = obj
            return obj

        return add

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted({*self._own, *(point.name for point in entry_points(group=self.group))})

    def __contains__(self, name: object) -> bool:
        # Entry points are read from disk: 10 ms, too much where an attack is made for every batch.
        return name in self._own or name in self.names()

    def get(self, name: str) -> Any:
        """The object called `name`; a class or factory, imported only now.

        Raises
        ------
        UserError
            If nothing has that name, or the third-party module behind it cannot be imported.
        """
        if name in self._own:
            return self._own[name]
        for point in entry_points(group=self.group):
            if point.name == name:
                try:
                    return point.load()
                except ImportError as e:
                    raise UserError(
                        f"{self.kind} '{name}' is declared by {point.value} but cannot be "
                        f"imported: {e}"
                    ) from e
        known = self.names()
        raise UserError(
            f"unknown {self.kind} '{name}'{nearest(name, known)} (known: {', '.join(known)})"
        )


#: NNI's classes that take any further keyword and use none: settings that there were before 3.0.
_IGNORE_OTHERS = {
    "nni.nas.strategy.bruteforce.Random",
    "nni.nas.strategy.evolution.RegularizedEvolution",
}


def constructor_arguments(cls: Any) -> list[str] | None:
    """Names of the arguments that a class or factory takes, or None where it takes any.

    NNI hides constructors: those of traced classes behind ``__wrapped__``, those of model spaces
    behind ``_init_wrapped``. Of its strategies that ignore what they do not know, the names are
    those that they know.
    """
    real = getattr(cls, "__wrapped__", cls)
    parameters = inspect.signature(getattr(real, "_init_wrapped", real)).parameters.values()
    where = f"{real.__module__}.{getattr(real, '__qualname__', '')}"  # a partial has no name
    if where not in _IGNORE_OTHERS and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.name != "self"]


search_spaces = Registry("search space", "nni_robust.search_spaces")
strategies = Registry("strategy", "nni_robust.strategies")
evaluators = Registry("evaluator", "nni_robust.evaluators")
attacks = Registry("attack", "nni_robust.attacks")
datasets = Registry("data set", "nni_robust.datasets")

GROUPS = {r.group: r for r in (search_spaces, strategies, evaluators, attacks, datasets)}
