"""Where maps are taken from a network: rules that name its layers, in order of depth.

* ``irf_units`` (students of RNAS-CL): every convolution unit of an inverted residual network, after
  norm and activation, before the residual sum. Networks say it themselves: ``tap_points()``.
* ``wrn_conv`` (its WRN-34-10 teacher): raw outputs of the first convolution and of the convolutions
  of each block, without shortcuts: 31 for WRN-34-10.
* ``resnet_relu`` (its ResNet teachers): after the ReLU, the stem, each convolution of a block but
  the last, and the block: 17 for ResNet-18, 49 for ResNet-50.
* ``cells``: the output of each cell of RobNet's and DARTS's networks.
* ``convs``: every convolution that is no shortcut, of any network.

Counts and layers of the first three are those of the authors' code (SDL-ASU/RNAS-CL, f490b73).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from nni_robust.errors import UserError, nearest

__all__ = ["TAP_RULES", "TapPoint", "TapSpec", "find_taps"]

#: A rule's name, ``"auto"``, or the names of taps.
TapSpec = str | Sequence[str]

_SHORTCUTS = ("shortcut", "downsample", "skip")


@dataclasses.dataclass(frozen=True)
class TapPoint:
    """One place in a network.

    Parameters
    ----------
    path
        Name of the module whose output is taken, as in ``named_modules()``.
    relu
        Take the output's positive part: the ReLU that follows may be no module of its own.
    kind
        What it is, for people: ``stem``, ``pw``, ``conv1``, ``block``, ….
    """

    path: str
    relu: bool = False
    kind: str = ""

    @property
    def name(self) -> str:
        """Name in files: the path, with ``:relu`` behind it where a ReLU follows."""
        return f"{self.path}:relu" if self.relu else self.path

    @classmethod
    def parse(cls, name: str, kind: str = "") -> TapPoint:
        """The point of a name."""
        path, _, suffix = name.partition(":")
        if suffix not in ("", "relu"):
            raise UserError(f"tap '{name}': only ':relu' may follow the name of a module")
        return cls(path, suffix == "relu", kind)


def find_taps(network: nn.Module, taps: TapSpec = "auto") -> list[TapPoint]:
    """The points of a network, from its input to its output.

    Parameters
    ----------
    network
        Any network.
    taps
        ``"auto"`` chooses the first rule that fits; a name of :data:`TAP_RULES`; or names of
        points, such as ``["stem", "layer1.0.bn1:relu"]``, which are kept in that order.

    Raises
    ------
    UserError
        If the rule is unknown or does not fit, or there is no such module.
    """
    if isinstance(taps, str):
        if taps == "auto":
            found = next((p for rule in TAP_RULES.values() if (p := rule(network))), [])
        elif taps in TAP_RULES:
            found = TAP_RULES[taps](network)
        else:
            raise UserError(
                f"taps: unknown rule '{taps}'{nearest(taps, TAP_RULES)} "
                f"(allowed: auto, {', '.join(TAP_RULES)}, or a list of module names)"
            )
    else:
        found = [TapPoint.parse(name) for name in taps]
    modules = dict(network.named_modules())
    for point in found:
        if point.path not in modules:
            raise UserError(
                f"taps: the network {type(network).__name__} has no module '{point.path}'"
                f"{nearest(point.path, modules)}"
            )
    if not found:
        raise UserError(f"taps: rule '{taps}' finds nothing in {type(network).__name__}")
    return found


def _own(network: nn.Module) -> list[TapPoint]:
    """What the network (or the network inside a wrapper) says itself."""
    for path, module in network.named_modules():
        offer = getattr(module, "tap_points", None)
        if callable(offer):
            prefix = f"{path}." if path else ""
            return [_offered(prefix, item) for item in offer()]
    return []


def _offered(prefix: str, item: Any) -> TapPoint:
    """A point from a name, or from a pair of name and kind."""
    if isinstance(item, str):
        return TapPoint.parse(prefix + item, item.rpartition(".")[2])
    name, kind = item
    return TapPoint.parse(prefix + str(name), str(kind))


def _preactivated(network: nn.Module) -> list[TapPoint]:
    """Raw convolutions of networks whose blocks begin with their norm."""
    blocks = [(path, block) for path, block in _blocks(network) if _norm_first(block)]
    if not blocks:
        return []
    points = [TapPoint(path, kind="stem") for path in _stem(network, blocks[0][0])]
    for path, block in blocks:
        points += [
            TapPoint(f"{path}.{name}", kind=name)
            for name, child in block.named_children()
            if name.startswith("conv") and isinstance(child, nn.Conv2d)
        ]
    return points


def _postactivated(network: nn.Module) -> list[TapPoint]:
    """After each ReLU of a ResNet, found at the norm before it; the last is the block's own."""
    blocks = [(path, block) for path, block in _blocks(network) if not _norm_first(block)]
    if not blocks:
        return []
    first = blocks[0][0]
    stems = [
        path
        for path, module in network.named_modules()
        if path.rpartition(".")[2] == "bn1" and not _inside(path, first)
    ]
    points = [TapPoint(path, True, "stem") for path in stems[:1] if _before(network, path, first)]
    for path, block in blocks:
        norms = [name for name in ("bn1", "bn2", "bn3") if hasattr(block, name)]
        points += [
            TapPoint(f"{path}.{name}", True, name.replace("bn", "conv")) for name in norms[:-1]
        ]
        points.append(TapPoint(path, kind="block"))
    return points


def _cells(network: nn.Module) -> list[TapPoint]:
    cells = getattr(network, "cells", None)
    if not isinstance(cells, nn.ModuleList):
        return []
    stem = [TapPoint(name, kind="stem") for name in ("stem", "stem1") if hasattr(network, name)]
    return [*stem[:1], *(TapPoint(f"cells.{index}", kind="cell") for index in range(len(cells)))]


def _convs(network: nn.Module) -> list[TapPoint]:
    return [
        TapPoint(path, kind="conv")
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and not any(word in path for word in _SHORTCUTS)
    ]


#: Rules by name, in the order in which ``"auto"`` tries them.
TAP_RULES: dict[str, Callable[[nn.Module], list[TapPoint]]] = {
    "irf_units": _own,
    "wrn_conv": _preactivated,
    "resnet_relu": _postactivated,
    "cells": _cells,
    "convs": _convs,
}


def _blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Residual blocks: modules below the network with ``conv1``, ``bn1`` and ``bn2``."""
    return [
        (path, module)
        for path, module in network.named_modules()
        if path
        and isinstance(getattr(module, "conv1", None), nn.Conv2d)
        and all(isinstance(getattr(module, name, None), nn.Module) for name in ("bn1", "bn2"))
    ]


def _norm_first(block: nn.Module) -> bool:
    """Whether the norm comes before the convolution, as it is written in all known networks."""
    names = [name for name, _ in block.named_children()]
    return names.index("bn1") < names.index("conv1")


def _stem(network: nn.Module, first: str) -> list[str]:
    """The last convolution before the first block, if there is one."""
    before: list[str] = []
    for path, module in network.named_modules():
        if path == first:
            break
        if isinstance(module, nn.Conv2d):
            before.append(path)
    return before[-1:]


def _before(network: nn.Module, path: str, other: str) -> bool:
    order: Iterable[str] = (name for name, _ in network.named_modules())
    return next((name == path for name in order if name in (path, other)), False)


def _inside(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")
