"""The macro layout of a network of DARTS cells (which cell has which width), and its exact cost.

Liu et al., DARTS, ICLR 2019 (arXiv 1806.09055), section 3.1 and appendix A: cells // 3 and
2 * cells // 3 are reduction cells, which halve the resolution and double the width. The formulas
give exactly the counts of the built network (no weights are needed).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nni_robust.cost import Cost
from nni_robust.errors import UserError

from ._cell_macro import Stem, check_macro, reduction_cells
from ._darts_genotype import Genotype

__all__ = ["CellLayout", "Layout"]


@dataclasses.dataclass(frozen=True)
class CellLayout:
    """Shapes of one cell.

    Parameters
    ----------
    channels
        Width of every node of the cell.
    inputs
        Channels of the output of cell k-2 and of cell k-1.
    reduction
        Edges from the input nodes have stride 2.
    halve_older
        The output of cell k-2 has twice the resolution of that of cell k-1 and must be halved.
    out_channels
        Channels of the cell's output: the width times the number of nodes that are concatenated.
    """

    channels: int
    inputs: tuple[int, int]
    reduction: bool
    halve_older: bool
    out_channels: int

    def stride(self, state: int) -> int:
        """Stride of an edge that reads this state."""
        return 2 if self.reduction and state < 2 else 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything about a network but its genotype.

    Parameters
    ----------
    num_classes
        Outputs of the classifier.
    width
        Channels of the nodes of the first cells (C in the papers). Even for the ImageNet stem.
    cells
        Number of cells, at least 3.
    stem
        ``"cifar"`` keeps the resolution, ``"imagenet"`` divides it by 8.
    auxiliary
        Whether there is an auxiliary head after the second reduction cell.

    Raises
    ------
    UserError
        If a value is out of range.
    """

    num_classes: int = 10
    width: int = 36
    cells: int = 20
    stem: Stem = "cifar"
    auxiliary: bool = False

    def __post_init__(self) -> None:
        check_macro(self.num_classes, self.cells, self.stem, self.width, "width")
        if not isinstance(self.auxiliary, bool):
            raise UserError(f"auxiliary: {self.auxiliary!r} is not allowed; true or false is")

    @property
    def reductions(self) -> tuple[int, int]:
        """Indices of the two reduction cells."""
        return reduction_cells(self.cells)

    def cell_layouts(self, genotype: Genotype) -> list[CellLayout]:
        """Shapes of all cells, first cell first."""
        imagenet = self.stem == "imagenet"
        older = newer = self.width * (1 if imagenet else 3)
        channels, halve_older = self.width, imagenet
        result = []
        for index in range(self.cells):
            reduction = index in self.reductions
            if reduction:
                channels *= 2
            concat = genotype.reduce_concat if reduction else genotype.normal_concat
            out = channels * len(concat)
            result.append(CellLayout(channels, (older, newer), reduction, halve_older, out))
            older, newer, halve_older = newer, out, reduction
        return result

    def check_picture(self, shape: Sequence[int]) -> None:
        """Check the shape (3, H, W) of a picture; only the auxiliary head restricts H and W.

        Raises
        ------
        UserError
            If it has not three channels, or the auxiliary head cannot take its size.
        """
        if len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
            raise UserError(
                f"a network of DARTS cells takes pictures of shape (3, H, W), not {tuple(shape)}"
            )
        if self.auxiliary:
            # The head pools 5x5 windows to 2x2 values.
            step, total = (2, 32) if self.stem == "imagenet" else (3, 4)
            if any((-(-side // total) - 5) // step != 1 for side in shape[1:]):
                usual = "224x224" if self.stem == "imagenet" else "32x32"
                raise UserError(
                    f"auxiliary: true is not allowed for pictures of {shape[1]}x{shape[2]} pixels, "
                    f"the head is made for {usual} ones"
                )

    def cost(self, genotype: Genotype, input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Trainable parameters and multiply-accumulates for one picture.

        Parameters
        ----------
        genotype
            The cells.
        input_shape
            (3, H, W) in pixels.

        Notes
        -----
        An auxiliary head adds its parameters, but no multiply-accumulates: only training runs it.

        Raises
        ------
        UserError
            If the network cannot take such pictures.
        """
        self.check_picture(input_shape)
        height, width = input_shape[1], input_shape[2]
        c = self.width
        if self.stem == "imagenet":
            convs = (27 * c // 2, 9 * c * c // 2, 9 * c * c)
            params = sum(convs) + c + 4 * c  # and the batch norms of c/2, c and c channels
            macs = 0
            for weights in convs:
                height, width = _half(height), _half(width)
                macs += weights * height * width
        else:
            params, macs = 87 * c, 81 * c * height * width
        cells = self.cell_layouts(genotype)
        for index, cell in enumerate(cells):
            preprocessing = sum(cell.inputs) * cell.channels
            params += preprocessing + 4 * cell.channels  # batch norms
            macs += preprocessing * height * width
            inside = (height, width)
            if cell.reduction:
                height, width = _half(height), _half(width)
            for operation, state in genotype.reduce if cell.reduction else genotype.normal:
                size = inside if state < 2 else (height, width)
                weights, products = _edge_cost(operation, cell.channels, cell.stride(state), *size)
                params += weights
                macs += products
            if self.auxiliary and index == self.reductions[1]:
                params += 128 * cell.out_channels + 2 * 128  # 1x1 convolution and batch norm,
                params += 4 * 128 * 768 + 2 * 768  # 2x2 convolution and batch norm,
                params += 769 * self.num_classes  # classifier
        head = cells[-1].out_channels * self.num_classes
        return Cost(params=params + head + self.num_classes, macs=macs + head)


def _half(side: int) -> int:
    return -(-side // 2)


def _edge_cost(operation: str, c: int, stride: int, height: int, width: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of an operation on c channels of height x width."""
    h, w = (_half(height), _half(width)) if stride == 2 else (height, width)
    if operation == "skip_connect":
        return (c * c + 2 * c, c * c * h * w) if stride == 2 else (0, 0)
    if operation == "conv_7x1_1x7":  # the first convolution halves the width, the second the height
        return 14 * c * c + 2 * c, 7 * c * c * (height * w + h * w)
    kind, size = operation.rsplit("_", 1)
    if kind in ("max_pool", "avg_pool"):
        return 0, 0
    # Depthwise and 1x1 convolution and batch norm, for a separable convolution twice.
    repeats, k = 2 if kind == "sep_conv" else 1, int(size[0])
    weights = repeats * (k * k * c + c * c)
    return weights + repeats * 2 * c, weights * h * w
