"""RobNet: networks of cells whose edges hold a separable convolution, an identity, both or nothing.

Guo, Yang, Xu, Liu, Lin, "When NAS Meets Robustness: In Search of Robust Architectures against
Adversarial Attacks", CVPR 2020, https://arxiv.org/abs/1911.10695, section 3.1. Networks compute the
same as those of the authors' repository (https://github.com/gmh14/RobNets, commit 0fbcb03) and
their state dicts have the same names; the repository has no search space, it is written after the
paper.

Differences: edges without operation cost nothing (the repository multiplies by zero); the ImageNet
network ends in a global average pool, so that other sizes than 224 pixels use the whole picture.

Reading order: the code of a cell (`_robnet_code`), the macro layout and its cost
(`_robnet_layout`), layers and cell (`_robnet_layers`), the network and the space (here), NNI's
forms of a choice (`_robnet_choice`), denoising blocks (`_denoising`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nni.mutable import Categorical, label_scope
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_robust.architecture.graph import CellGraph
from nni_robust.cost import Cost
from nni_robust.errors import UserError

from ._base import inherit_weights
from ._cell_macro import Stem, make_stem
from ._denoising import Denoise
from ._robnet_choice import DifferentiableEdge, EdgeChoice, SampledEdge
from ._robnet_code import (
    EDGES,
    STATES,
    Code,
    check_code,
    code_to_sample,
    count_convs,
    count_identities,
    density,
    direct_share,
    edge_label,
    sample_to_code,
)
from ._robnet_layers import Cell, ConvSkip, Edge, Map, edge_stride, shares
from ._robnet_layout import Denoising, Layout

__all__ = ["RobNet", "RobNetSpace"]


class _Backbone(nn.Module):
    """Stem, cells, denoising and classifier; how an edge is made is left to the caller."""

    layout: Layout
    stem: nn.Module
    stem0: nn.Module
    stem1: nn.Module

    def _assemble(
        self, layout: Layout, make_edge: Callable[[int, int, int, int], nn.Module]
    ) -> None:
        """Add the layers. `make_edge` gets cell, edge (0 to 13), channels and stride."""
        self.layout = layout
        for name, stem in make_stem(layout.init_channels, layout.stem).items():
            setattr(self, name, stem)
        cells = layout.cell_layouts()
        self.cells = nn.ModuleList(
            Cell(
                cell,
                [
                    make_edge(index, edge, cell.channels, edge_stride(cell, edge))
                    for edge in range(len(EDGES))
                ],
            )
            for index, cell in enumerate(cells)
        )
        self.denoise = nn.ModuleDict(  # by the number of the cell that a block comes after
            {
                str(index): Denoise(kind, 4 * cells[index].channels)
                for index, kind in layout.denoisers.items()
            }
        )
        self.classifier = nn.Linear(layout.out_channels, layout.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, 3, H, W), float in [0, 1]."""
        self.layout.check_picture(x.shape[1:])
        if self.layout.stem == "imagenet":
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        else:
            s0 = s1 = self.stem(x)
        older = Map(s0)
        newer = older if s1 is s0 else Map(s1)
        for index, cell in enumerate(self.cells):
            shared = {"sources": (older, newer)} if shares(x) else {}
            s1 = cell(older.value, newer.value, **shared)
            if str(index) in self.denoise:
                s1 = self.denoise[str(index)](s1)
            older, newer = newer, Map(s1)
        logits: Tensor = self.classifier(s1.mean(dim=(2, 3)))
        return logits


class RobNet(_Backbone):
    """A plain RobNet: a network like any other, without NNI inside.

    Parameters
    ----------
    code
        One string of 14 digits for all cells, or one per cell, see `_robnet_code`.
    num_classes
        Outputs of the classifier.
    init_channels
        Width C of the first cells; even for the ImageNet stem.
    cells
        Number of cells, at least 3.
    stem
        ``"cifar"``: sides of pictures divisible by 4. ``"imagenet"``: by 32.
    denoise
        Denoising block after the last cell of each stage: ``"gaussian"``, ``"dot"``, ``"mean"``,
        ``"median"`` or None, or a list of three of them. A Gaussian one in the first stage costs
        much, because it compares all positions of the largest feature map with each other.

    Raises
    ------
    UserError
        If an argument is out of range; in `forward` if the pictures' size does not fit.
    """

    def __init__(
        self,
        code: str | Sequence[str],
        num_classes: int = 10,
        init_channels: int = 36,
        cells: int = 20,
        stem: Stem = "cifar",
        denoise: Denoising = None,
    ) -> None:
        super().__init__()
        codes = check_code(code, cells)
        self.code: Code = codes[0] if len(codes) == 1 else codes

        def make_edge(cell: int, edge: int, channels: int, stride: int) -> Edge:
            digit = codes[cell if len(codes) > 1 else 0][edge]
            return Edge(STATES[int(digit)], channels, stride)

        self._assemble(Layout(num_classes, init_channels, cells, stem, denoise), make_edge)


class RobNetSpace(ModelSpace, _Backbone):
    """All RobNets of one size, as an NNI model space.

    Every edge is one choice, labelled ``"cell/0-2"`` (from node 0 to node 2, in every cell), or
    ``"cell06/0-2"`` where each cell has its own code, with the values ``none``, ``conv``, ``skip``
    and ``conv+skip``. NNI's multi-trial strategies, `RandomOneShot`, `DARTS` and `GumbelDARTS` take
    the space as it is (not `Proxyless`, which needs one module per value). The state dict of the
    space, also as a supernet, has the names of the :class:`RobNet` with all operations on.

    Parameters
    ----------
    num_classes, init_channels, cells, stem, denoise
        See :class:`RobNet`. Denoising blocks belong to every network of the space and are no
        choice; in a supernet all paths share them.
    cell_free
        Give every cell a code of its own.
    keep_probability
        Prior probability, in (0, 1], that a bit of an edge (identity, convolution) is on. The paper
        does not state it; its mean density of about 0.75 and the bit rate 0.64 of RobNet-free
        suggest 0.7.

    Raises
    ------
    UserError
        If an argument is out of range.
    """

    validate: Callable[[Mapping[str, Any]], None]  # NNI ships no types

    def __init__(
        self,
        num_classes: int = 10,
        init_channels: int = 36,
        cells: int = 20,
        cell_free: bool = False,
        stem: Stem = "cifar",
        keep_probability: float = 0.7,
        denoise: Denoising = None,
    ) -> None:
        super().__init__()
        if type(keep_probability) not in (int, float) or not 0 < keep_probability <= 1:
            raise UserError(
                f"keep_probability: {keep_probability!r} is not allowed; "
                "a number above 0 and up to 1 is"
            )
        if not isinstance(cell_free, bool):
            raise UserError(f"cell_free: {cell_free!r} is not allowed; true or false is")
        layout = Layout(num_classes, init_channels, cells, stem, denoise)
        self.cell_free = cell_free
        p = float(keep_probability)
        weights = [(1 - p) ** 2, p * (1 - p), p * (1 - p), p**2]
        choices: dict[str, Categorical[str]] = {}

        def make_edge(cell: int, edge: int, channels: int, stride: int) -> EdgeChoice:
            label = edge_label(cell if cell_free else None, edge)
            if label not in choices:
                scope, name = label.split("/")
                with label_scope(scope):
                    choices[label] = Categorical(STATES, weights=weights, label=name)
            return EdgeChoice(ConvSkip(channels, stride), choices[label])

        self._assemble(layout, make_edge)

    @classmethod
    def create_fixed_module(
        cls,
        sample: dict[str, Any],
        num_classes: int = 10,
        init_channels: int = 36,
        cells: int = 20,
        cell_free: bool = False,
        stem: Stem = "cifar",
        keep_probability: float = 0.7,
        denoise: Denoising = None,
    ) -> RobNet:
        """What the constructor gives in a trial: the plain network (called by NNI)."""
        return RobNet(sample_to_code(sample), num_classes, init_channels, cells, stem, denoise)

    @classmethod
    def extra_oneshot_hooks(cls, strategy: Any) -> list[Callable[..., Any]]:
        """How NNI's one-shot strategies turn an edge into a part of their supernet."""
        from nni.nas.strategy import DARTS, Proxyless, RandomOneShot

        if isinstance(strategy, RandomOneShot):
            return [SampledEdge.mutate]
        if isinstance(strategy, DARTS) and not isinstance(strategy, Proxyless):
            return [DifferentiableEdge.mutate]
        return []

    def freeze(self, sample: Mapping[str, Any]) -> RobNet:
        """The plain network of a sample, with copies of this space's (or supernet's) weights.

        Parameters
        ----------
        sample
            A value for every label.

        Raises
        ------
        nni.mutable.exception.SampleValidationError
            If the sample is not in the space.
        """
        self.validate(sample)
        code = sample_to_code(sample)
        build = partial(RobNet, code, **vars(self.layout))
        return inherit_weights(build, self, partial(_supernet_name, check_code(code)))

    def cost(self, sample: Mapping[str, Any], input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Parameters and MACs of a sample's network for one picture, in closed form."""
        return self.layout.cost(check_code(sample_to_code(sample)), input_shape)

    def attributes(self, sample: Mapping[str, Any]) -> dict[str, float]:
        """What the paper's studies count in a sample (sections 3.3 and 3.4).

        Means over the cells where each cell has a code of its own, so that the paper's budgets
        (small: at most 7 convolutions, medium: 8 to 10, large: at least 11) mean the same there.

        Returns
        -------
        dict[str, float]
            ``convs`` and ``identities``: edges of a cell that hold one, 0 to 14. ``density``: share
            of all 28 bits that are on. ``direct_share_edges``: share of the five direct edges that
            hold a convolution. ``direct_share_convs``: share of the convolutions that are on direct
            edges, of all cells together; 0 without any.
        """
        code = sample_to_code(sample)
        cells = len(check_code(code))
        return {
            "convs": count_convs(code) / cells,
            "identities": count_identities(code) / cells,
            "density": density(code),
            "direct_share_edges": direct_share(code, "direct_edges"),
            "direct_share_convs": direct_share(code, "convs"),
        }

    @classmethod
    def decode(
        cls, code: str | Sequence[str], *, cells: int = 20, cell_free: bool = False, **_: Any
    ) -> dict[str, str]:
        """Sample of a code (14 digits, or a list of them); other arguments of the space do not
        matter."""
        return code_to_sample(code, cells=cells, cell_free=cell_free)

    @classmethod
    def encode(cls, sample: Mapping[str, Any]) -> Code:
        """Code of a sample: a string, or a list of one per cell in a cell-free space."""
        return sample_to_code(sample)

    def cell_graphs(self, sample: Mapping[str, Any]) -> list[CellGraph]:
        """Drawings of the cells: one where all share a code, else one per cell."""
        codes = check_code(sample_to_code(sample))
        first, second = self.layout.reductions
        if not self.cell_free:
            last = self.layout.cells - 1
            return [_graph(f"cells 0-{last} (reductions: {first} and {second})", codes[0])]
        return [
            _graph(f"cell {i}{' (reduction)' if i in (first, second) else ''}", code)
            for i, code in enumerate(codes)
        ]


def _supernet_name(codes: list[str], name: str) -> str:
    """Name in the space's state dict of an entry of a plain network's.

    A plain edge holds its only operation as ``op``; the space's edge holds ``op.conv`` and
    ``op.res``.
    """
    parts = name.split(".")  # cells.<cell>._ops.<edge>.op.<rest>
    if parts[0] != "cells" or parts[2] != "_ops":
        return name
    cell, edge = int(parts[1]), int(parts[3])
    state = STATES[int(codes[cell if len(codes) > 1 else 0][edge])]
    if state == "conv+skip":
        return name
    return ".".join([*parts[:5], "conv" if state == "conv" else "res", *parts[5:]])


def _graph(title: str, code: str) -> CellGraph:
    nodes = ("c(k-2)", "c(k-1)", "f1", "f2", "f3", "f4")
    operations = {"1": ["sep conv 3x3"], "2": ["identity"], "3": ["sep conv 3x3", "identity"]}
    return CellGraph(
        title=title,
        nodes=nodes,
        edges=tuple(
            (nodes[source], nodes[target], operation)
            for (source, target), digit in zip(EDGES, code, strict=True)
            for operation in operations.get(digit, [])
        ),
        inputs=nodes[:2],
        outputs=nodes[2:],
    )
