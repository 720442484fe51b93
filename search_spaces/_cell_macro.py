"""What every network of cells after DARTS has in common: stems, reduction cells, width doubling.

Liu et al., DARTS, ICLR 2019 (arXiv 1806.09055), section 3.1 and appendix A; RobNet (CVPR 2020) has
the same macro layout. Cells at a third and at two thirds of the depth are reduction cells.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from nni_robust.errors import UserError

from ._base import at_least

__all__ = ["Stem", "check_macro", "make_stem", "reduction_cells"]

Stem = Literal["cifar", "imagenet"]


def reduction_cells(cells: int) -> tuple[int, int]:
    """Indices of the two reduction cells."""
    return cells // 3, 2 * cells // 3


def check_macro(num_classes: int, cells: int, stem: str, width: int, width_name: str) -> None:
    """Refuse sizes that no network of cells can have.

    Parameters
    ----------
    num_classes, cells, stem
        As the spaces take them.
    width
        Channels of the first cells.
    width_name
        What the space calls that argument.

    Raises
    ------
    UserError
        If a value is out of range.
    """
    at_least("num_classes", num_classes, 1)
    at_least(width_name, width, 1)
    at_least("cells", cells, 3)  # with fewer the first cell would be a reduction
    if stem not in get_args(Stem):
        raise UserError(f"stem: {stem!r} is not allowed; allowed: cifar, imagenet")
    if stem == "imagenet" and width % 2:
        raise UserError(
            f"{width_name}: {width} is not allowed with the ImageNet stem, which halves it; an "
            "even "
            "number is"
        )


def make_stem(channels: int, stem: str) -> dict[str, nn.Sequential]:
    """The layers before the first cell, by their names in the network.

    Parameters
    ----------
    channels
        Width C of the first cells.
    stem
        ``"cifar"``: ``stem`` gives (N, 3C, H, W). ``"imagenet"``: ``stem0`` gives (N, C, H/4, W/4),
        and ``stem1`` of it (N, C, H/8, W/8).
    """

    def conv(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]

    if stem == "cifar":
        return {"stem": nn.Sequential(*conv(3, 3 * channels, 1))}
    half = channels // 2
    return {
        "stem0": nn.Sequential(*conv(3, half, 2), nn.ReLU(), *conv(half, channels, 2)),
        "stem1": nn.Sequential(nn.ReLU(), *conv(channels, channels, 2)),
    }
