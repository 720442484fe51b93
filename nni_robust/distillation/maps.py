"""Attention maps of a network's layers, and how far the maps of two networks are apart.

Map of an activation A (C, H, W): F(A)_hw = sum_c |A_chw|^p with p = 2 (Zagoruyko, Komodakis,
"Paying more attention to attention", 1612.03928), brought to one size for all layers and to length
one. Distance of two maps: their squared Euclidean distance, in [0, 2] as maps have no negative
entries; averaged over pictures. RNAS-CL (Nath, Wang, Yang, 2301.08092) divides each picture's map
by its own length; its released code divides a whole batch by one, so that bright pictures dominate:
``norm: batch``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.attacks import undisturbed
from nni_robust.config import strict
from nni_robust.distillation.taps import TapPoint
from nni_robust.errors import UserError

__all__ = [
    "MapConfig",
    "MapSession",
    "attention_map",
    "describe_layers",
    "distances",
    "tap_sides",
]


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """How maps are made.

    Parameters
    ----------
    power
        Of the absolute activations.
    size
        Height and width that all maps are brought to (the authors: 14 for CIFAR, 28 for ImageNet).
    resize
        ``"bilinear"``, or ``"area"``, which averages where maps shrink.
    norm
        ``"sample"``: each picture's map has length one; ``"batch"``: as the released code.
    """

    power: int = 2
    size: int = 14
    resize: Literal["bilinear", "area"] = "bilinear"
    norm: Literal["sample", "batch"] = "sample"

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for key in ("power", "size"):
            if getattr(self, key) < 1:
                raise UserError(f"maps.{key}: {getattr(self, key)!r} is not allowed; >= 1 is")


def attention_map(activation: Tensor, config: MapConfig) -> Tensor:
    """Maps (B, size * size), float32, of activations (B, C, H, W)."""
    # In float32: a sum of squares over many channels leaves half precision's range.
    raw: Tensor = activation.float().abs().pow(config.power).sum(1)
    if raw.shape[1:] != (config.size, config.size):
        # The batch as channels: one call for all pictures.
        options: dict[str, Any] = {} if config.resize == "area" else {"align_corners": False}
        size = (config.size, config.size)
        raw = F.interpolate(raw[None], size, mode=config.resize, **options)[0]
    flat = raw.flatten(1)
    if config.norm == "sample":
        return F.normalize(flat, dim=1)
    # Times the root of B, so that a mean over pictures has the scale of the other norm.
    scaled: Tensor = flat / flat.norm().clamp_min(1e-12) * math.sqrt(len(flat))
    return scaled


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of every student map to every teacher map.

    Parameters
    ----------
    student, teacher
        (n_s, B, d) and (n_t, B, d), see :meth:`MapSession.collect`.

    Returns
    -------
    Tensor
        (n_s, n_t), at least 0; at most 2 for maps of length one. By |s - t|^2 = |s|^2 + |t|^2 -
        2<s, t>, without a tensor of n_s * n_t maps.
    """
    pictures = student.shape[1]
    own = student.square().sum((1, 2))[:, None] + teacher.square().sum((1, 2))[None]
    both = torch.einsum("ibd,jbd->ij", student, teacher)
    return ((own - 2 * both) / pictures).clamp_min(0)


class MapSession:
    """Hooks that turn the outputs of some layers into maps, in every forward pass while enabled.

    Nothing but the maps is kept. As a context manager it removes its hooks at the end; outside of
    :meth:`recording` a forward pass, such as that of an attack, leaves no trace.

    Parameters
    ----------
    network
        The network.
    taps
        Where; see :func:`nni_robust.distillation.find_taps`.
    config
        How.

    Attributes
    ----------
    enabled
        Whether forward passes are recorded.
    """

    def __init__(self, network: nn.Module, taps: Sequence[TapPoint], config: MapConfig) -> None:
        self.network, self.taps, self.config, self.enabled = network, list(taps), config, False
        self._passes: list[dict[int, Tensor]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> MapSession:
        modules = dict(self.network.named_modules())
        self._handles.append(self.network.register_forward_pre_hook(self._begin))
        for index, point in enumerate(self.taps):
            if point.path not in modules:
                raise UserError(f"taps: the network has no module '{point.path}'")
            hook = self._hook(index, point)
            self._handles.append(modules[point.path].register_forward_hook(hook))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passes.clear()
        self.enabled = False

    @contextmanager
    def recording(self) -> Iterator[MapSession]:
        """Record the forward passes inside; earlier ones are forgotten."""
        self._passes.clear()
        self.enabled = True
        try:
            yield self
        finally:
            self.enabled = False

    def collect(self, number: int = 0) -> Tensor:
        """Maps (n, B, d), float32, of one recorded forward pass, in the order of the taps.

        Raises
        ------
        UserError
            If a tapped layer was not used in that pass.
        """
        if number >= len(self._passes):
            raise ValueError(f"forward pass {number} was not recorded")
        found = self._passes[number]
        for index, point in enumerate(self.taps):
            if index not in found:
                raise UserError(f"taps: '{point.name}' was not used in the forward pass")
        return torch.stack([found[index] for index in range(len(self.taps))])

    def _begin(self, *_: Any) -> None:
        if self.enabled:
            self._passes.append({})

    def _hook(self, index: int, point: TapPoint) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if not self.enabled:
                return
            if not isinstance(output, Tensor) or output.dim() != 4:
                raise UserError(f"taps: '{point.name}' gives no picture-like output (N, C, H, W)")
            if point.relu:
                output = output.relu()
            elif output.requires_grad and point.kind == "conv":
                # A ReLU in place may overwrite it before the backward pass.
                output = output.clone()
            self._passes[-1][index] = attention_map(output, self.config)

        return keep


def tap_sides(
    network: nn.Module, taps: Sequence[TapPoint], input_shape: Sequence[int]
) -> list[int]:
    """Height of the output of each tapped layer, for pictures (C, H, W).

    The network computes one empty picture; it is left as it was.

    Raises
    ------
    UserError
        If a tapped layer is not used.
    """
    sides: dict[int, int] = {}
    modules = dict(network.named_modules())

    def hook(index: int) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            sides[index] = int(output.shape[-2])

        return note

    handles = [modules[p.path].register_forward_hook(hook(i)) for i, p in enumerate(taps)]
    weight = next(network.parameters())
    picture = torch.zeros(1, *input_shape, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad(), undisturbed(network):
            network(picture)
    finally:
        for handle in handles:
            handle.remove()
    for index, point in enumerate(taps):
        if index not in sides:
            raise UserError(f"taps: '{point.name}' was not used in the forward pass")
    return [sides[index] for index in range(len(taps))]


def describe_layers(
    network: nn.Module, taps: Sequence[TapPoint], input_shape: Sequence[int]
) -> list[dict[str, Any]]:
    """``name``, ``kind`` and ``side`` of each tapped layer, JSON-able; see :func:`tap_sides`."""
    sides = tap_sides(network, taps, input_shape)
    return [
        {"name": point.name, "kind": point.kind, "side": side}
        for point, side in zip(taps, sides, strict=True)
    ]
