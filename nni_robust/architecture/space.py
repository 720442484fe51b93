"""What the core asks of a search space, and how it opens one by name.

A space is an NNI model space. To take part in experiments, in architecture files and on the command
line, a package declares it as an entry point and keeps to :class:`Space`::

    [project.entry-points."nni_robust.search_spaces"]
    my-space = "my_package.spaces:MySpace"

Its name then works as ``space: my-space`` in YAML. Only `num_classes` and what NNI asks of any
model space are needed; the rest of :class:`Space` is used where it is there (without `cost`,
networks are measured; without `attributes`, searches have bounds on parameters and MACs only;
without `cell_graphs`, nothing is drawn; without `decode`, files hold a sample, no code; without
`read_foreign`, files are ours only).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from nni_robust.errors import UserError, nearest
from nni_robust.registry import constructor_arguments, search_spaces

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from nni_robust.architecture._architecture import Architecture
    from nni_robust.architecture.graph import CellGraph
    from nni_robust.cost import Cost

__all__ = ["Space", "build_network", "check_sample", "open_space"]


class Space(Protocol):
    """The methods of a search space that the core calls.

    The constructor takes `num_classes` and plain numbers, strings and lists (they travel to trials
    as JSON) and works under ``torch.device("meta")``. Built inside
    ``nni.nas.space.model_context(sample)`` it gives the sample's plain network, as NNI wants it
    anyway.
    """

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        """The plain network of a sample; of a trained supernet with copies of its weights."""

    def cost(self, sample: Mapping[str, Any], input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Exact parameters and MACs of a sample's network, without building it."""

    def attributes(self, sample: Mapping[str, Any]) -> dict[str, float]:
        """Numbers that a study counts in a sample's network, without building it.

        Such as the density of a RobNet. Searches take bounds on them by name, next to ``params``
        and ``macs``, which are no names for an attribute. The names are the same for all samples.
        """

    def cell_graphs(self, sample: Mapping[str, Any]) -> list[CellGraph]:
        """Drawings of the sample's cells or stages."""

    @classmethod
    def decode(cls, code: Any, **space_args: Any) -> dict[str, Any]:
        """Sample of the short form that papers print; `space_args` as for the constructor."""

    @classmethod
    def read_foreign(cls, value: Mapping[str, Any], path: Path) -> Architecture | None:
        """The architecture that a file of other people's code describes, None for other files."""

    @classmethod
    def encode(cls, sample: Mapping[str, Any]) -> Any:
        """Inverse of `decode`: something that JSON can hold."""


def open_space(name: str, space_args: Mapping[str, Any], num_classes: int) -> Any:
    """The space called `name`, on the meta device: for asking, not for training.

    Parameters
    ----------
    name
        Registered name, such as ``"robnet"``.
    space_args
        Arguments of its constructor besides `num_classes`.
    num_classes
        Outputs of its networks.

    Raises
    ------
    UserError
        If there is no such space, or it has no such argument, or refuses its value.
    """
    key = json.dumps([dict(space_args), num_classes], sort_keys=True)
    return _open(_find(name, space_args), name, key)


def build_network(
    name: str, space_args: Mapping[str, Any], num_classes: int, sample: Mapping[str, Any]
) -> nn.Module:
    """The plain network of `sample` with fresh weights, on torch's default device.

    Raises
    ------
    UserError
        As :func:`open_space`.
    """
    from nni.nas.space import model_context

    space = _find(name, space_args)
    with model_context(dict(sample)):
        network: nn.Module = _construct(space, name, dict(space_args), num_classes)
    return network


def check_sample(space: Any, sample: Mapping[str, Any], where: str) -> None:
    """Check that a sample has an allowed value for every choice of the space, and nothing else.

    Parameters
    ----------
    space
        Any NNI model space.
    sample
        Label to value.
    where
        What the sample belongs to, for the message.

    Raises
    ------
    UserError
        Naming the label, the value and what is allowed.
    """
    choices = space.simplify()
    for label, value in sample.items():
        if label not in choices:
            raise UserError(
                f"{where}: the sample has {label!r}, which is no choice of this space"
                f"{nearest(label, choices)}"
            )
        values = getattr(choices[label], "values", None)
        if choices[label].check_contains(dict(sample)) is not None:
            allowed = f"; allowed: {', '.join(map(str, values))}" if values is not None else ""
            raise UserError(f"{where}: {label}: {value!r} is not allowed{allowed}")
    missing = next((label for label in choices if label not in sample), None)
    if missing is not None:
        raise UserError(f"{where}: the sample has no value for '{missing}'")
    broken = space.check_contains(dict(sample))
    if broken is not None:
        raise UserError(f"{where}: the sample is not in the space: {broken}")


def _find(name: str, space_args: Mapping[str, Any]) -> Any:
    """The class called `name`, after a look at the names of the arguments."""
    space = search_spaces.get(name)
    arguments = constructor_arguments(space)
    if arguments is None:
        return space
    known = [key for key in arguments if key != "num_classes"]
    for key in space_args:
        if key not in known:
            raise UserError(
                f"space '{name}' has no argument '{key}'{nearest(key, known)} "
                f"(allowed: {', '.join(known)})"
            )
    return space


@lru_cache(maxsize=16)
def _open(space: Any, name: str, key: str) -> Any:
    import torch

    space_args, num_classes = json.loads(key)
    with torch.device("meta"):
        return _construct(space, name, space_args, num_classes)


def _construct(space: Any, name: str, space_args: dict[str, Any], num_classes: int) -> Any:
    try:
        return space(num_classes=num_classes, **space_args)
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError) as e:
        raise UserError(f"space '{name}' refuses the arguments {space_args}: {e}") from e
