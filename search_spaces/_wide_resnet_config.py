"""Everything that describes one wide residual network, checked, and the shapes of its stages.

Fields as in the constructor of the authors' `PreActResNet` (zhichao-lu/robust-residual-network,
commit 8c6d2c2), except that widths are factors and that the block parameters default to the
published values (8, 10, 4, 64), not to the code's (4, 64, 8, 16), with which no published network
was made. Nothing here needs PyTorch or NNI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nni_robust.errors import UserError, nearest

from ._base import at_least

__all__ = [
    "ACTIVATIONS",
    "BLOCKS",
    "NORMALIZATIONS",
    "NORMALIZE",
    "Stage",
    "WideResNetConfig",
    "per_stage",
    "read_normalize",
]

#: Types of blocks: two convolutions; or a bottleneck with a hierarchy of convolutions and SE.
BLOCKS = ("basic", "robust")
#: Names of classes of ``torch.nn``.
ACTIVATIONS = ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Mish", "Softplus")
NORMALIZATIONS = ("BatchNorm", "GroupNorm", "LayerNorm", "InstanceNorm")

#: Mean and standard deviation of the channels, by name. CIFAR-10: as in RobustBench's WRN-A4.
NORMALIZE = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))}

_STAGES = 3


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of the three stages.

    Parameters
    ----------
    depth
        Number of blocks.
    in_channels
        Channels of the stage's input.
    channels
        Width of the blocks. A robust block puts out four times as many channels.
    stride
        Of the first block; the others have 1.
    block, kernel_size, activation, normalization
        See :class:`WideResNetConfig`.
    """

    depth: int
    in_channels: int
    channels: int
    stride: int
    block: str
    kernel_size: int
    activation: str
    normalization: str

    @property
    def out_channels(self) -> int:
        """Channels of the stage's output, and of the input of every block but the first."""
        return self.channels * (4 if self.block == "robust" else 1)


@dataclasses.dataclass(frozen=True)
class WideResNetConfig:
    """One wide residual network.

    What is given per stage is a list of three; one value alone stands for all three.

    Parameters
    ----------
    num_classes
        Outputs of the classifier.
    depths
        Blocks per stage. WRN-d-w has (d - 4) / 6 in each.
    widths
        Factor per stage, by which `base_channels` is multiplied.
    blocks
        Type of block per stage: ``"basic"`` or ``"robust"``.
    activation, normalization, kernel_size
        Per stage, in :data:`ACTIVATIONS`, in :data:`NORMALIZATIONS`, odd number of pixels. The last
        stage's activation and normalisation come before the classifier as well.
    strides
        Stride of the first block, per stage.
    stem_channels, stem_stride
        Of the first convolution.
    base_channels
        Channels per stage of a network with width 1.
    scales
        Robust block: number of slices of the hierarchy.
    base_width
        Robust block: channels per group of a slice of a block with 160 channels.
    cardinality
        Robust block: groups of the convolutions.
    se_reduction
        Robust block: squeeze-excite has 1 / `se_reduction` as many hidden units as channels.
    preact_fix
        Robust block: feed the main path with the normalised input. The authors' code feeds it with
        the raw input (and so does every published network), which leaves the first norm of a block
        with identity shortcut without effect.
    normalize
        Input normalisation inside the network: None, ``"cifar10"``, or a pair of three means and
        three standard deviations, for pictures in [0, 1].

    Raises
    ------
    UserError
        If a value is not allowed, or the robust block cannot be built with so few channels.
    """

    num_classes: int = 10
    depths: int | Sequence[int] = (4, 4, 4)
    widths: int | Sequence[int] = (10, 10, 10)
    blocks: str | Sequence[str] = "basic"
    activation: str | Sequence[str] = "ReLU"
    normalization: str | Sequence[str] = "BatchNorm"
    kernel_size: int | Sequence[int] = 3
    strides: int | Sequence[int] = (1, 2, 2)
    stem_channels: int = 16
    stem_stride: int = 1
    base_channels: int | Sequence[int] = (16, 32, 64)
    scales: int = 8
    base_width: int = 10
    cardinality: int = 4
    se_reduction: int = 64
    preact_fix: bool = False
    normalize: str | Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        for name in (
            *("num_classes", "stem_channels", "stem_stride"),
            *("scales", "base_width", "cardinality", "se_reduction"),
        ):
            at_least(name, getattr(self, name), 1)
        checks: dict[str, Callable[[str, object], None]] = {
            **dict.fromkeys(("depths", "widths", "strides", "base_channels"), _positive),
            "kernel_size": _odd,
            "blocks": _one_of(BLOCKS),
            "activation": _one_of(ACTIVATIONS),
            "normalization": _one_of(NORMALIZATIONS),
        }
        for name, check in checks.items():
            values = per_stage(name, getattr(self, name))
            for value in values:
                check(name, value)
            object.__setattr__(self, name, values)
        if not isinstance(self.preact_fix, bool):
            raise UserError(f"preact_fix: {self.preact_fix!r} is not allowed; true or false is")
        object.__setattr__(self, "normalize", read_normalize(self.normalize))
        for index, stage in enumerate(self.stages(), start=1):
            self._check_robust(index, stage)

    def _check_robust(self, index: int, stage: Stage) -> None:
        if stage.block != "robust":
            return
        if self.slice_channels(stage.channels) == 0:
            raise UserError(
                f"stage {index}: robust blocks of {stage.channels} channels are not allowed with "
                f"base_width {self.base_width}; at least {-(-160 // self.base_width)} channels are"
            )
        if self.se_reduction > stage.out_channels:
            raise UserError(
                f"se_reduction: {self.se_reduction} is not allowed with the {stage.out_channels} "
                f"output channels of stage {index}; at most as many are"
            )

    def slice_channels(self, channels: int) -> int:
        """Channels of one slice of the hierarchy in a robust block of `channels` channels."""
        return channels * self.base_width // 160 * self.cardinality

    def mean_and_std(self) -> tuple[tuple[float, ...], ...]:
        """Means and standard deviations of the input normalisation; empty without one."""
        if self.normalize is None:
            return ()
        rows = NORMALIZE[self.normalize] if isinstance(self.normalize, str) else self.normalize
        return tuple(tuple(row) for row in rows)

    def stages(self) -> list[Stage]:
        """Shapes of the three stages, first stage first."""
        columns = (
            *(self.depths, self.widths, self.base_channels, self.strides),
            *(self.blocks, self.kernel_size, self.activation, self.normalization),
        )
        rows = zip(*(per_stage("", column) for column in columns), strict=True)
        result: list[Stage] = []
        channels = self.stem_channels
        for depth, width, base, stride, *kinds in rows:
            result.append(Stage(depth, channels, width * base, stride, *kinds))
            channels = result[-1].out_channels
        return result

    def arguments(self) -> dict[str, Any]:
        """The fields that differ from their defaults, JSON-able: the arguments of the space below
        this network.

        `depths` and `widths` are always there, `num_classes` never.
        """
        defaults = WideResNetConfig()
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "num_classes" or (
                value == getattr(defaults, field.name) and field.name not in ("depths", "widths")
            ):
                continue
            uniform = field.name in ("blocks", "activation", "normalization", "kernel_size")
            if uniform and len(set(value)) == 1:
                value = value[0]
            result[field.name] = _listed(value)
        return result


def per_stage(name: str, value: Any) -> tuple[Any, Any, Any]:
    """Three values, of a sequence of three or of one value for all stages.

    Raises
    ------
    UserError
        If a sequence has another length.
    """
    if not isinstance(value, (list, tuple)):
        return (value, value, value)
    if len(value) != _STAGES:
        raise UserError(
            f"{name}: {list(value)} is not allowed; one value or a list of three (one per stage) is"
        )
    return tuple(value)


def _positive(name: str, value: object) -> None:
    at_least(name, value, 1)


def _odd(name: str, value: object) -> None:
    at_least(name, value, 1)
    if isinstance(value, int) and value % 2 == 0:
        raise UserError(f"{name}: {value} is not allowed; an odd number is")


def _one_of(allowed: Sequence[str]) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if value not in allowed:
            raise UserError(
                f"{name}: {value!r} is not allowed{nearest(str(value), allowed)} "
                f"(allowed: {', '.join(allowed)})"
            )

    return check


def read_normalize(value: Any) -> Any:
    """`normalize` as it is kept: None, a known name, or two tuples of three floats."""
    if value is None or (isinstance(value, str) and value in NORMALIZE):
        return value
    numbers = (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(row, (list, tuple)) and len(row) == 3 for row in value)
        and all(type(number) in (int, float) for row in value for number in row)
    )
    if not numbers or min(value[1]) <= 0:
        raise UserError(
            f"normalize: {value!r} is not allowed; null, {', '.join(NORMALIZE)} or three means and "
            "three positive standard deviations are"
        )
    return tuple(tuple(float(number) for number in row) for row in value)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
