"""Everything that describes one family of inverted-residual networks, checked; the presets.

Macro template, widths and constants are those of the code released with RNAS-CL
(https://github.com/SDL-ASU/RNAS-CL, commit f490b73), except where a preset says otherwise. Nothing
here needs PyTorch or NNI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nni_robust.errors import UserError, nearest

from ._base import at_least
from ._wide_resnet_config import NORMALIZE, read_normalize

__all__ = [
    "HEAD_EXPANSION",
    "PRESETS",
    "Block",
    "InvertedResidualConfig",
    "Stage",
    "make_config",
]

#: Widths inside the head of the ImageNet template, as a multiple of its input's.
HEAD_EXPANSION = 6

#: How the inner width of a block follows from the widths of its input.
MIDS = ("input", "full")

_STAGE_KEYS = ("blocks", "widths", "stride", "expansion")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks that share their candidate widths.

    Parameters
    ----------
    blocks
        Number of blocks.
    widths
        Candidate output widths of each block, descending.
    stride
        Of the first block; the others have 1.
    expansion
        Inner width of a block as a multiple of its input's; with 1 there is no first convolution.
    """

    blocks: int
    widths: tuple[int, ...]
    stride: int = 1
    expansion: int = 6


@dataclasses.dataclass(frozen=True)
class Block:
    """One block at the largest widths, and the labels of the choices that it depends on.

    Parameters
    ----------
    label
        Choice of the output's width, such as ``"stage1/block2/width"``.
    source
        Choice of the input's width: the block before; None behind the stem, whose width is fixed.
    inputs, outputs
        Largest widths.
    stride, expansion
        See :class:`Stage`.
    """

    label: str
    source: str | None
    inputs: int
    outputs: int
    stride: int
    expansion: int

    @property
    def shortcut(self) -> bool:
        """Whether input and output are added: at the largest widths they have one shape."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclasses.dataclass(frozen=True)
class InvertedResidualConfig:
    """The networks of one space; see :class:`.inverted_residual.InvertedResidualSpace`."""

    num_classes: int
    stages: tuple[Stage, ...]
    stem_channels: int = 16
    stem_stride: int = 2
    head_channels: int | None = None
    mid: str = "input"
    bn_momentum: float = 0.003
    bn_eps: float = 1e-5
    zero_gamma: bool = False
    normalize: Any = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "stem_channels", "stem_stride"):
            at_least(name, getattr(self, name), 1)
        if self.head_channels is not None:
            at_least("head_channels", self.head_channels, 1)
        if self.mid not in MIDS:
            raise UserError(
                f"mid: {self.mid!r} is not allowed{nearest(str(self.mid), MIDS)} "
                f"(allowed: {', '.join(MIDS)})"
            )
        for name, top in (("bn_momentum", 1.0), ("bn_eps", float("inf"))):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= top:
                raise UserError(f"{name}: {value!r} is not allowed; a number above 0 is")
        if not isinstance(self.zero_gamma, bool):
            raise UserError(f"zero_gamma: {self.zero_gamma!r} is not allowed; true or false is")
        object.__setattr__(self, "normalize", read_normalize(self.normalize))

    def mean_and_std(self) -> tuple[tuple[float, ...], ...]:
        """Means and standard deviations of the input normalisation; empty without one."""
        if self.normalize is None:
            return ()
        rows = NORMALIZE[self.normalize] if isinstance(self.normalize, str) else self.normalize
        return tuple(tuple(row) for row in rows)

    def blocks(self) -> list[list[Block]]:
        """The blocks of each stage."""
        result: list[list[Block]] = []
        source, inputs = None, self.stem_channels
        for number, stage in enumerate(self.stages, start=1):
            result.append([])
            for index in range(stage.blocks):
                label = f"stage{number}/block{index + 1}/width"
                stride = 1 if index else stage.stride
                width = stage.widths[0]
                result[-1].append(Block(label, source, inputs, width, stride, stage.expansion))
                source, inputs = label, width
        return result

    def choices(self) -> dict[str, tuple[int, ...]]:
        """Candidate widths of every block, by label, in the order of the blocks."""
        return {
            block.label: stage.widths
            for stage, blocks in zip(self.stages, self.blocks(), strict=True)
            for block in blocks
        }

    def inner(self, block: Block, inputs: int) -> int:
        """Inner width of a block whose input has `inputs` of its largest width."""
        return block.expansion * (block.inputs if self.keeps_inner(block) else inputs)

    def keeps_inner(self, block: Block) -> bool:
        """Whether a block is inside as wide as ever, whatever its input.

        Without a first convolution it cannot be.
        """
        return self.mid == "full" and block.expansion > 1

    def head_inner(self, inputs: int) -> int:
        """Inner width of the head, behind a last block with `inputs` channels."""
        widest = self.stages[-1].widths[0]
        return HEAD_EXPANSION * (widest if self.mid == "full" else inputs)


def _range(largest: int, options: int, step: int) -> tuple[int, ...]:
    return tuple(largest - step * index for index in range(options))


def _stages(
    blocks: Sequence[int], largest: Sequence[int], options: Sequence[int], step: Sequence[int]
) -> tuple[Stage, ...]:
    """The CIFAR template: three stages, of which the later two halve the resolution."""
    return tuple(
        Stage(count, _range(width, number, size), 1 if index == 0 else 2)
        for index, (count, width, number, size) in enumerate(
            zip(blocks, largest, options, step, strict=True)
        )
    )


_SMALL = ((16, 32, 64), (2, 4, 4), (4, 4, 4))

#: By name: stages, and settings of the template. All but s7w are the released code's; of `l` it
#: holds the largest widths only, and the options are those of `m`.
PRESETS: dict[str, dict[str, Any]] = {
    "s3": {"stages": _stages((3, 3, 3), *_SMALL)},
    "s5": {"stages": _stages((5, 5, 5), *_SMALL)},
    "s7": {"stages": _stages((7, 7, 7), *_SMALL)},
    "s9": {"stages": _stages((9, 9, 9), *_SMALL)},
    "s18": {"stages": _stages((15, 18, 18), *_SMALL)},
    "m": {"stages": _stages((9, 7, 1), (80, 160, 128), (2, 4, 4), (4, 4, 4))},
    "l": {"stages": _stages((9, 7, 1), (160, 320, 256), (2, 4, 4), (4, 4, 4))},
    # Our own: s7's blocks with 25 to 100 % of the largest width, so that the search has a say.
    "s7w": {"stages": _stages((7, 7, 7), (16, 32, 64), (4, 4, 7), (4, 8, 8))},
    "imagenet-100": {
        "stages": (
            Stage(1, _range(16, 2, 4), 1, 1),
            Stage(3, _range(28, 4, 4), 2),
            Stage(3, _range(40, 4, 8), 2),
            Stage(3, _range(96, 7, 8), 2),
            Stage(4, _range(128, 8, 8), 1),
            Stage(4, _range(216, 14, 8), 2),
        ),
        "head_channels": 1984,
    },
}


def make_config(
    num_classes: int,
    preset: str | None,
    stages: Sequence[Mapping[str, Any]] | None,
    **settings: Any,
) -> InvertedResidualConfig:
    """What a space's arguments describe; a setting of None is the preset's.

    Raises
    ------
    UserError
        If both or neither of `preset` and `stages` are given, or a value is not allowed.
    """
    if (preset is None) == (stages is None):
        raise UserError(
            f"preset: {preset!r} is not allowed {'with' if stages else 'without'} stages; "
            "either the name of a preset or stages of your own are"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    if stages is not None:
        return InvertedResidualConfig(num_classes, _read_stages(stages), **given)
    if preset not in PRESETS:
        raise UserError(
            f"preset: {preset!r} is not allowed{nearest(str(preset), PRESETS)} "
            f"(allowed: {', '.join(PRESETS)})"
        )
    return InvertedResidualConfig(num_classes, **{**PRESETS[preset], **given})


def _read_stages(stages: Any) -> tuple[Stage, ...]:
    if not isinstance(stages, (list, tuple)) or not stages:
        raise UserError(f"stages: {stages!r} is not allowed; a list of mappings is")
    return tuple(_read_stage(f"stages[{index}]", stage) for index, stage in enumerate(stages))


def _read_stage(where: str, value: Any) -> Stage:
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: {value!r} is not allowed; a mapping with blocks and widths is, such as "
            "{blocks: 3, widths: [16, 12], stride: 1, expansion: 6}"
        )
    for key in value:
        if key not in _STAGE_KEYS:
            raise UserError(
                f"{where}: unknown key {key!r}{nearest(str(key), _STAGE_KEYS)} "
                f"(allowed: {', '.join(_STAGE_KEYS)})"
            )
    for key in ("blocks", "widths"):
        if key not in value:
            raise UserError(f"{where}.{key} is missing")
    for key in ("blocks", "stride", "expansion"):
        at_least(f"{where}.{key}", value.get(key, 1), 1)
    widths = value["widths"]
    if not isinstance(widths, (list, tuple)) or not widths or len(set(widths)) < len(widths):
        raise UserError(
            f"{where}.widths: {widths!r} is not allowed; a list of different positive integers is"
        )
    for width in widths:
        at_least(f"{where}.widths", width, 1)
    return Stage(
        value["blocks"],
        tuple(sorted(widths, reverse=True)),
        value.get("stride", 1),
        value.get("expansion", 6),
    )
