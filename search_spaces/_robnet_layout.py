"""The macro layout of a RobNet (which cell has which width) and what it costs, in closed form.

Guo et al., CVPR 2020 (arXiv 1911.10695); layout as in the authors' repository (gmh14/RobNets, model
files; DARTS layout): cells // 3 and 2 * cells // 3 are reduction cells, which halve the resolution
and double the width. The formulas give exactly the counts of the built network (no weights are
needed).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nni_robust.cost import Cost
from nni_robust.errors import UserError

from ._cell_macro import Stem, check_macro, reduction_cells
from ._denoising import denoise_cost, one_per_stage
from ._robnet_code import INPUT_EDGES

__all__ = ["CellLayout", "Denoising", "Layout"]

#: A variant of `_denoising.DENOISERS` for all stages, or one (or None) per stage.
Denoising = str | Sequence[str | None] | None


@dataclasses.dataclass(frozen=True)
class CellLayout:
    """Shapes of one cell.

    Parameters
    ----------
    channels
        Width of every node of the cell; the cell's output has four times as many channels.
    inputs
        Channels of the output of cell k-2 and of cell k-1.
    reduction
        Edges from the input nodes have stride 2.
    halve_older
        The output of cell k-2 has twice the resolution of that of cell k-1 and must be halved.
    """

    channels: int
    inputs: tuple[int, int]
    reduction: bool
    halve_older: bool


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything about a RobNet but its code.

    Parameters
    ----------
    num_classes
        Outputs of the classifier.
    init_channels
        Width C of the first cells. Even for the ImageNet stem.
    cells
        Number of cells, at least 3.
    stem
        ``"cifar"`` keeps the resolution, ``"imagenet"`` divides it by 8.
    denoise
        Denoising block at the end of each of the three stages, see `_denoising`: None, the name of
        a variant, or a list of three such.

    Raises
    ------
    UserError
        If a value is out of range.
    """

    num_classes: int = 10
    init_channels: int = 36
    cells: int = 20
    stem: Stem = "cifar"
    denoise: Denoising = None

    def __post_init__(self) -> None:
        check_macro(self.num_classes, self.cells, self.stem, self.init_channels, "init_channels")
        one_per_stage(self.denoise, 3)

    @property
    def reductions(self) -> tuple[int, int]:
        """Indices of the two reduction cells."""
        return reduction_cells(self.cells)

    @property
    def denoisers(self) -> dict[int, str]:
        """Denoising blocks by the cell that they come after: the last cell of a stage."""
        first, second = self.reductions
        ends = (first - 1, second - 1, self.cells - 1)
        kinds = one_per_stage(self.denoise, 3)
        return {end: kind for end, kind in zip(ends, kinds, strict=True) if kind is not None}

    @property
    def out_channels(self) -> int:
        """Channels of the last cell's output."""
        return 16 * self.init_channels

    def cell_layouts(self) -> list[CellLayout]:
        """Shapes of all cells, first cell first."""
        imagenet = self.stem == "imagenet"
        older = newer = self.init_channels * (1 if imagenet else 3)
        channels, halve_older = self.init_channels, imagenet
        result = []
        for index in range(self.cells):
            reduction = index in self.reductions
            if reduction:
                channels *= 2
            result.append(CellLayout(channels, (older, newer), reduction, halve_older))
            older, newer, halve_older = newer, 4 * channels, reduction
        return result

    def check_picture(self, shape: Sequence[int]) -> None:
        """Check the shape (3, H, W) of a picture.

        Raises
        ------
        UserError
            If it has not three channels, or a resolution that the reduction cells cannot halve.
        """
        if len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
            raise UserError(f"RobNet takes pictures of shape (3, H, W), not {tuple(shape)}")
        # The resolution of the ImageNet stem's first output is halved before the first cell
        # already.
        factor, multiple = (8, 32) if self.stem == "imagenet" else (4, 4)
        if any(side % factor for side in self._first_size(shape[1], shape[2])):
            raise UserError(
                f"RobNet with the {self.stem} stem cannot take pictures of {shape[1]}x{shape[2]} "
                f"pixels, its cells halve them repeatedly; sides divisible by {multiple} work"
            )

    def _first_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the first feature map that a cell gets."""
        shrink = 4 if self.stem == "imagenet" else 1
        return -(-height // shrink), -(-width // shrink)

    def cost(self, codes: Sequence[str], input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Trainable parameters and multiply-accumulates for one picture.

        Parameters
        ----------
        codes
            One string, shared by all cells, or one per cell.
        input_shape
            (3, H, W) in pixels.

        Raises
        ------
        UserError
            If the network cannot take such pictures.
        """
        self.check_picture(input_shape)
        c = self.init_channels
        height, width = self._first_size(input_shape[1], input_shape[2])
        if self.stem == "imagenet":
            first = -(-input_shape[1] // 2) * -(-input_shape[2] // 2)
            convs = (27 * c // 2, 9 * c * c // 2, 9 * c * c)
            params = sum(convs) + c + 4 * c  # and the affine batch norms of c/2, c and c channels
            macs = convs[0] * first + convs[1] * height * width + convs[2] * (height * width // 4)
            height, width = height // 2, width // 2
        else:
            params, macs = 87 * c, 81 * c * height * width
        denoisers = self.denoisers
        codes = codes if len(codes) > 1 else [codes[0]] * self.cells
        for index, (cell, code) in enumerate(zip(self.cell_layouts(), codes, strict=True)):
            w = cell.channels
            preprocessing = sum(cell.inputs) * w
            params += preprocessing
            macs += preprocessing * height * width
            if cell.reduction:
                height, width = height // 2, width // 2
            for edge, digit in enumerate(code):
                # Two depthwise and two pointwise convolutions; a strided identity is a 1x1 one.
                weights = 2 * (9 * w + w * w) * (int(digit) % 2)
                if cell.reduction and edge in INPUT_EDGES:
                    weights += w * w * (int(digit) // 2)
                params += weights
                macs += weights * height * width
            if index in denoisers:
                block = denoise_cost(denoisers[index], 4 * w, height, width)
                params, macs = params + block.params, macs + block.macs
        head = self.out_channels * self.num_classes
        return Cost(params=params + head + self.num_classes, macs=macs + head)
