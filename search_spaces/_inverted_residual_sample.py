"""Codes of inverted-residual networks: the widths of all blocks, stage by stage.

``"16x7 20x7 52x4,56x2,52"`` has seven blocks in each of three stages; ``56x2`` stands for two
blocks of width 56, a width alone for one block.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from nni_robust.errors import UserError

__all__ = ["decode", "encode"]

_RUN = re.compile(r"(\d+)(?:x(\d+))?")
_LABEL = re.compile(r"stage(\d+)/block(\d+)/width")


def decode(code: object, blocks: list[int]) -> dict[str, int]:
    """Sample of a code, for a space with so many blocks in its stages.

    Raises
    ------
    UserError
        If the code is malformed or has another number of stages or blocks.
    """
    stages = [_read_stage(part) for part in code.split()] if isinstance(code, str) else []
    if [len(stage) for stage in stages] != blocks:
        example = " ".join(f"20x{count}" for count in blocks)
        raise UserError(
            f"inverted-residual code: {code!r} is not allowed; widths of {blocks} blocks of "
            f"{len(blocks)} stages are, such as '{example}' or, for a stage, '52x2,56'"
        )
    return {
        f"stage{number}/block{index}/width": width
        for number, widths in enumerate(stages, start=1)
        for index, width in enumerate(widths, start=1)
    }


def encode(sample: Mapping[str, Any]) -> str:
    """Code of a sample, inverse of :func:`decode`; other labels are passed over.

    Raises
    ------
    UserError
        If a block is missing in between.
    """
    stages: dict[int, dict[int, int]] = {}
    for label, width in sample.items():
        if match := _LABEL.fullmatch(label):
            stages.setdefault(int(match[1]), {})[int(match[2])] = width
    parts: list[str] = []
    for number in range(1, max(stages, default=1) + 1):
        stage = stages.get(number, {})
        for index in range(1, max(stage, default=1) + 1):
            if index not in stage:
                raise UserError(
                    "the inverted-residual sample has no value for "
                    f"'stage{number}/block{index}/width'"
                )
        runs = itertools.groupby(stage[index] for index in sorted(stage))
        counted = [(width, len(list(group))) for width, group in runs]
        parts.append(",".join(f"{w}x{n}" if n > 1 else f"{w}" for w, n in counted))
    return " ".join(parts)


def _read_stage(part: str) -> list[int]:
    """Widths of a stage; empty where it is malformed."""
    widths: list[int] = []
    for run in part.split(","):
        match = _RUN.fullmatch(run)
        if match is None:
            return []
        widths += [int(match[1])] * int(match[2] or 1)
    return widths
