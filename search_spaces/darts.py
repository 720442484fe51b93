"""Networks of DARTS cells: WsrNets, RACL, AdvRush, DARTS and their relatives.

Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv 1806.09055; used
by Cheng et al., "Neural Architecture Search for Wide Spectrum Adversarial Robustness", AAAI 2023
(Wsr-NAS), among others.

What is NNI's: :class:`DartsSpace` *is* the hub's NDS space, so choices, labels, supernets and
samples are those of ``nni.nas.hub.pytorch.DARTS``; operations, preprocessing and auxiliary head of
the plain network are the hub's too, and its state dict has the names of the hub's frozen network,
which computes the same bit for bit (and the same as the retraining networks of Wsr-NAS).

What is not, and why: the hub's frozen network and cells are still NNI's mutables, so the plain
network is written here (`_darts_layers`); the hub fixes 10 or 1000 classes and gives a frozen
network fresh weights, here the number is free and weights are inherited from a supernet; counts
have a closed form (`_darts_layout`), and the papers' genotypes are read and compared
(`_darts_genotype`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from nni.nas.hub.pytorch.nasnet import NDS, AuxiliaryHead
from nni.nas.nn.pytorch.base import ParametrizedModule
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell
from nni.nas.space import model_context
from torch import Tensor, nn

from nni_robust.architecture.graph import CellGraph
from nni_robust.cost import Cost
from nni_robust.errors import UserError

from ._base import inherit_weights
from ._cell_macro import Stem, make_stem
from ._darts_genotype import (
    Genotype,
    Kind,
    canonical_form,
    genotype_to_sample,
    get_kind,
    isomorphic,
    read_genotype,
    sample_to_genotype,
)
from ._darts_layers import Cell
from ._darts_layout import Layout

__all__ = ["DartsNetwork", "DartsSpace", "Genotype", "canonical_form", "isomorphic"]


class DartsNetwork(nn.Module):
    """A plain network of DARTS cells: a network like any other, without NNI inside.

    Pictures of any size are taken; a global average pool comes before the classifier.

    Parameters
    ----------
    genotype
        The cells, in any form that `_darts_genotype.read_genotype` takes.
    num_classes
        Outputs of the classifier.
    width
        Channels of the nodes of the first cells (C in the papers); even for the ImageNet stem.
    cells
        Number of cells, at least 3.
    stem
        ``"cifar"`` keeps the resolution, ``"imagenet"`` divides it by 8.
    auxiliary
        Add the auxiliary head of DARTS after the second reduction cell. In training mode `forward`
        then gives a pair, of which the second is the head's logits.
    drop_path
        Probability, in [0, 1), that an edge is dropped for a picture while training (identities are
        kept); see :meth:`set_drop_path`.

    Raises
    ------
    UserError
        If an argument is out of range; in `forward` if pictures have not three channels or their
        size does not suit the auxiliary head.
    """

    stem: nn.Module
    stem0: nn.Module
    stem1: nn.Module

    def __init__(
        self,
        genotype: Any,
        num_classes: int = 10,
        width: int = 36,
        cells: int = 20,
        stem: Stem = "cifar",
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.genotype = g = read_genotype(genotype)
        self.layout = Layout(num_classes, width, cells, stem, auxiliary)
        layouts = self.layout.cell_layouts(g)
        second = self.layout.reductions[1]
        # Inside a model context the hub's layers are torch's own and not NNI's mutable ones.
        with model_context(genotype_to_sample(g)):
            for name, layers in make_stem(width, stem).items():
                setattr(self, name, layers)
            built = [
                Cell(cell, *((g.reduce, g.reduce_concat) if cell.reduction else g[:2]))
                for cell in layouts
            ]
            bounds = (0, *self.layout.reductions, cells)
            self.stages = nn.ModuleList(
                nn.ModuleList(built[start:end]) for start, end in itertools.pairwise(bounds)
            )
            if auxiliary:
                self.auxiliary_head = AuxiliaryHead(
                    layouts[second].out_channels, num_classes, dataset=stem
                )
                # In place it would change what the next cell gets.
                self.auxiliary_head.features[0].inplace = False
            self.classifier = nn.Linear(layouts[-1].out_channels, num_classes)
        self.set_drop_path(drop_path)

    def set_drop_path(self, probability: float) -> None:
        """Set the probability, in [0, 1), that a path is dropped; DARTS raises it every epoch.

        Raises
        ------
        UserError
            If it is out of range.
        """
        _check_drop_path(probability)
        for cell in self.cells():
            cell.drop_path = float(probability)

    def cells(self) -> list[Cell]:
        """All cells, first cell first."""
        return list(itertools.chain.from_iterable(cast("list[list[Cell]]", self.stages)))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, num_classes) of pictures (N, 3, H, W), float in [0, 1].

        With an auxiliary head and in training mode: these, and the head's logits.
        """
        self.layout.check_picture(x.shape[1:])
        if self.layout.stem == "imagenet":
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        else:
            s0 = s1 = self.stem(x)
        auxiliary: Tensor | None = None
        for index, cell in enumerate(self.cells()):
            s0, s1 = s1, cell(s0, s1)
            if self.layout.auxiliary and self.training and index == self.layout.reductions[1]:
                auxiliary = self.auxiliary_head(s1)
        logits: Tensor = self.classifier(s1.mean(dim=(2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)


class DartsSpace(NDS):  # type: ignore[misc]
    """All networks of DARTS cells of one size, as an NNI model space.

    Normal and reduction cells have two choices for each of their edges: the operation, labelled
    ``"normal/op_2_0"`` (first edge of node 2), and the state it reads, ``"normal/input_2_0"``, a
    list of one number. NNI's multi-trial strategies, `RandomOneShot`, `DARTS` and `GumbelDARTS`
    take the space as it is; in their supernets every edge holds all operations on all earlier
    states. Samples of ``nni.nas.hub.pytorch.DARTS`` are samples of this space.

    Parameters
    ----------
    num_classes, width, cells, stem
        See :class:`DartsNetwork`.
    cell
        ``"darts"``: four nodes, all concatenated, and the seven operations of DARTS.
        ``"nasnet"``: five nodes, of which those that no node reads are concatenated, and also
        ``sep_conv_7x7`` and ``conv_7x1_1x7``: the cells of NASNet-A and AmoebaNet-A. Such a space
        cannot become a supernet.
    auxiliary, drop_path
        See :class:`DartsNetwork`. Networks in trials have them; a supernet, and what inherits its
        weights, has no auxiliary head, and a supernet drops no paths.

    Raises
    ------
    UserError
        If an argument is out of range.
    """

    # NNI ships no types.
    validate: Callable[[Mapping[str, Any]], None]
    num_labels: int
    classifier: nn.Module

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 36,
        cells: int = 20,
        stem: Stem = "cifar",
        cell: Kind = "darts",
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        layout = Layout(num_classes, width, cells, stem, auxiliary)
        kind = get_kind(cell)
        _check_drop_path(drop_path)
        super().__init__(
            list(kind.operations),
            merge_op="loose_end" if kind.loose_ends else "all",
            num_nodes_per_cell=kind.nodes,
            width=width,
            num_cells=cells,
            dataset=stem,
        )
        self.layout, self.cell, self.drop_path = layout, cell, drop_path
        if num_classes != self.num_labels:
            self.num_labels = num_classes
            self.classifier = nn.Linear(cast(int, self.classifier.in_features), num_classes)

    @classmethod
    def create_fixed_module(
        cls,
        sample: dict[str, Any],
        num_classes: int = 10,
        width: int = 36,
        cells: int = 20,
        stem: Stem = "cifar",
        cell: Kind = "darts",
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ) -> DartsNetwork:
        """What the constructor gives in a trial: the plain network (called by NNI)."""
        genotype = read_genotype(sample_to_genotype(sample), cell)
        return DartsNetwork(genotype, num_classes, width, cells, stem, auxiliary, drop_path)

    def extra_oneshot_hooks(self, strategy: Any) -> list[Callable[..., Any]]:
        """Keep NNI's one-shot strategies from replacing layers that hold no choice.

        They would be slower, and NNI's batch norms do not count their batches.

        Raises
        ------
        UserError
            If cells have loose ends: the width of their output depends on the sample.
        """
        if get_kind(self.cell).loose_ends:
            raise UserError(
                f"cell: {self.cell!r} is not allowed in a supernet, the widths of its networks "
                "differ; 'darts' is"
            )
        return [_keep_layer]

    def freeze(self, sample: Mapping[str, Any]) -> DartsNetwork:
        """The plain network of a sample.

        From a supernet it has copies of the weights. From a space that is none it has fresh ones,
        on torch's default device: the hub makes the candidates of such a space with no regard to
        the state they read, so they do not fit.

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
        genotype, size = sample_to_genotype(sample), self.layout
        is_supernet = any(isinstance(module, PathSamplingCell) for module in self.modules())
        build = partial(
            DartsNetwork,
            genotype,
            size.num_classes,
            size.width,
            size.cells,
            size.stem,
            size.auxiliary and not is_supernet,
            self.drop_path,
        )
        if is_supernet:
            return inherit_weights(build, self, partial(_supernet_name, genotype))
        return build().train(self.training)

    def cost(self, sample: Mapping[str, Any], input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Parameters and MACs of a sample's network for one picture, in closed form."""
        return self.layout.cost(sample_to_genotype(sample), input_shape)

    @classmethod
    def decode(cls, code: Any, *, cell: Kind = "darts", **_: Any) -> dict[str, Any]:
        """Sample of a genotype, as a mapping, a named tuple or the text that repositories hold;
        other arguments of the space do not matter."""
        return genotype_to_sample(read_genotype(code, cell))

    @classmethod
    def encode(cls, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Genotype of a sample: lists of ``[operation, state]`` and of concatenated states."""
        g = sample_to_genotype(sample)
        return {
            "normal": [list(edge) for edge in g.normal],
            "normal_concat": list(g.normal_concat),
            "reduce": [list(edge) for edge in g.reduce],
            "reduce_concat": list(g.reduce_concat),
        }

    def cell_graphs(self, sample: Mapping[str, Any]) -> list[CellGraph]:
        """Drawings of the normal and of the reduction cell."""
        g = sample_to_genotype(sample)
        first, second = self.layout.reductions
        reductions = f"reduction cells ({first} and {second})"
        return [
            _graph("normal cells", g.normal, g.normal_concat),
            _graph(reductions, g.reduce, g.reduce_concat),
        ]


def _check_drop_path(value: object) -> None:
    if type(value) not in (int, float) or not 0 <= value < 1:  # type: ignore[operator]
        raise UserError(
            f"drop_path: {value!r} is not allowed; a probability of at least 0 and below 1 is"
        )


def _keep_layer(module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]) -> bool:
    """NNI's mutation hook; true ends the search for a replacement."""
    return isinstance(module, ParametrizedModule) and not module.mutables


def _supernet_name(genotype: Genotype, name: str) -> str:
    """Name in the supernet's state dict of an entry of a plain network's.

    ``stages.1.0.ops.2.1.<rest>`` (second edge of the third node of the first cell of stage 1) is
    ``stages.1.blocks.0.ops.2.<state>.<operation>.<rest>`` there.
    """
    parts = name.split(".")
    if parts[0] != "stages":
        return name
    stage, cell, layer, *rest = parts[1:]
    if layer == "ops":
        edges = genotype.reduce if stage != "0" and cell == "0" else genotype.normal
        operation, state = edges[2 * int(rest[0]) + int(rest[1])]
        rest[1:2] = [str(state), operation]
    return ".".join(["stages", stage, "blocks", cell, layer, *rest])


def _graph(title: str, edges: Sequence[tuple[str, int]], concat: Sequence[int]) -> CellGraph:
    nodes = ("c(k-2)", "c(k-1)", *(f"f{i + 1}" for i in range(len(edges) // 2)))

    def words(operation: str) -> str:
        return "identity" if operation == "skip_connect" else operation.replace("_", " ")

    return CellGraph(
        title=title,
        nodes=nodes,
        edges=tuple(
            (nodes[state], nodes[2 + index // 2], words(operation))
            for index, (operation, state) in enumerate(edges)
        ),
        inputs=nodes[:2],
        outputs=tuple(nodes[state] for state in concat),
    )
