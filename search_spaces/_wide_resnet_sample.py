"""Samples of the space of wide residual networks: their codes, and the networks they stand for.

A code has depth x width of each stage, such as ``"14x5 14x7 7x3"``; where the type of block is a
choice, ``b`` (basic) or ``r`` (robust) follows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nni_robust.errors import UserError

from ._base import at_least
from ._wide_resnet_config import WideResNetConfig, per_stage

__all__ = ["allowed_values", "decided", "decode", "encode", "searched_stages"]

_CODE = re.compile(r"(\d+)x(\d+)([br]?)")


def decode(code: object, search_blocks: bool | Sequence[bool]) -> dict[str, Any]:
    """Sample of a code.

    Parameters
    ----------
    code
        See above.
    search_blocks
        Where the type of block is a choice; one value, or one per stage.

    Raises
    ------
    UserError
        If the code is malformed.
    """
    searched = searched_stages(search_blocks)
    parts = code.split() if isinstance(code, str) else []
    matches = [match for part in parts if (match := _CODE.fullmatch(part))]
    if len(parts) != 3 or [bool(match[3]) for match in matches] != list(searched):
        example = " ".join("4x10r" if searches else "4x10" for searches in searched)
        raise UserError(
            f"wide-resnet code: {code!r} is not allowed; depth x width of three stages is, such as "
            f"'{example}' (b or r for the type of block where that is a choice)"
        )
    sample: dict[str, Any] = {}
    for index, match in enumerate(matches, start=1):
        sample |= {f"stage{index}/depth": int(match[1]), f"stage{index}/width": int(match[2])}
        if match[3]:
            sample[f"stage{index}/block"] = "robust" if match[3] == "r" else "basic"
    return sample


def encode(sample: Mapping[str, Any]) -> str:
    """Code of a sample, inverse of :func:`decode`; other labels are passed over.

    Raises
    ------
    UserError
        If a value is missing.
    """
    return " ".join(
        f"{_get(sample, index, 'depth')}x{_get(sample, index, 'width')}"
        f"{sample.get(f'stage{index}/block', '')[:1]}"
        for index in (1, 2, 3)
    )


def decided(teacher: WideResNetConfig, sample: Mapping[str, Any]) -> WideResNetConfig:
    """The teacher with the depths, widths and types of block of a sample."""
    return dataclasses.replace(
        teacher,
        depths=[_get(sample, index, "depth") for index in (1, 2, 3)],
        widths=[_get(sample, index, "width") for index in (1, 2, 3)],
        blocks=[
            sample.get(f"stage{index}/block", own) for index, own in enumerate(teacher.blocks, 1)
        ],
    )


def searched_stages(search_blocks: Any) -> tuple[bool, bool, bool]:
    searched = per_stage("search_blocks", search_blocks)
    if not all(isinstance(value, bool) for value in searched):
        raise UserError(f"search_blocks: {search_blocks!r} is not allowed; true or false is")
    return searched


def allowed_values(name: str, values: Sequence[int] | None, limits: Any) -> list[list[int]]:
    """Values of a choice in each stage, in increasing order."""
    if values is not None and not isinstance(values, (list, tuple)):
        raise UserError(f"{name}: {values!r} is not allowed; a list of positive integers is")
    for value in values or ():
        at_least(name, value, 1)
    result = []
    for limit in limits:
        known = range(1, limit + 1) if values is None else sorted(set(values))
        result.append([value for value in known if value <= limit])
        if not result[-1]:
            raise UserError(
                f"{name}: {list(values or ())} is not allowed; at least one value up to the "
                f"teacher's {limit} is needed"
            )
    return result


def _get(sample: Mapping[str, Any], index: int, what: str) -> Any:
    label = f"stage{index}/{what}"
    if label not in sample:
        raise UserError(f"the wide-resnet sample has no value for '{label}'")
    return sample[label]
