"""Wide residual networks that can be compressed: depth, width and type of block per stage.

* Networks: Huang, Lu, Deb, Boddeti, "Revisiting Residual Networks for Adversarial Robustness: An
  Architectural Perspective", CVPR 2023, https://arxiv.org/abs/2212.11005 (WRN-A1..A4 and
  RobustResNet-A1..A4). Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016,
  https://arxiv.org/abs/1605.07146 (WRN-d-w).
* Space: Wang, Sapkota, Tao, Yu, "Reinforced Compressive Neural Architecture Search for Versatile
  Adversarial Robustness", KDD 2024, https://arxiv.org/abs/2406.06792: sub-networks of a teacher,
  with less depth and width per stage, and basic or robust blocks.

Networks compute the same as those of https://github.com/zhichao-lu/robust-residual-network, commit
8c6d2c2, and their state dicts have the same names, also as RobustBench's WRN-A4. The RC-NAS
repository (wdr123/robN2N) is a copy of it, without a search; the space is written after the paper's
abstract and figures.

Differences: the robust block's parameters default to the published values, where the code's
defaults build networks of eight times the cost; norms without effect are not computed (see
`RobustBlock`).

Reading order: what describes a network (`_wide_resnet_config`), its cost (`_wide_resnet_cost`), its
blocks (`_wide_resnet_layers`), the network (`_wide_resnet_network`), the space (here), samples and
codes (`_wide_resnet_sample`), weights taken over from a teacher (`_wide_resnet_match`,
`_wide_resnet_inherit`), the authors' files (`_wide_resnet_upstream`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nni.mutable import Categorical, label_scope
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nni_robust.architecture import Architecture
from nni_robust.architecture.graph import CellGraph
from nni_robust.cost import Cost
from nni_robust.errors import UserError

from ._wide_resnet_config import BLOCKS, Stage, WideResNetConfig
from ._wide_resnet_cost import network_cost
from ._wide_resnet_inherit import inherited_state
from ._wide_resnet_match import match_teacher
from ._wide_resnet_network import Backbone, WideResNet
from ._wide_resnet_sample import allowed_values, decided, decode, encode, searched_stages
from ._wide_resnet_upstream import from_upstream_yaml

__all__ = [
    "WideResNet",
    "WideResNetConfig",
    "WideResNetSpace",
    "from_upstream_yaml",
]


class WideResNetSpace(ModelSpace, Backbone):
    """All networks below a teacher, as an NNI model space.

    Choices are ``"stage1/depth"`` (1 to the teacher's), ``"stage1/width"`` (1 to the teacher's),
    and, where asked for, ``"stage1/block"`` (``basic`` or ``robust``); likewise stages 2 and 3.
    NNI's multi-trial strategies take the space as it is; one-shot strategies are refused. Before
    any decision it computes as the teacher, and its state dict is the teacher's. Its networks get
    fresh weights.

    Parameters
    ----------
    num_classes
        Outputs of the classifier.
    depths, widths, blocks
        Of the teacher, see :class:`WideResNetConfig`.
    search_blocks
        Whether the type of block is a choice; one value, or one per stage.
    depth_values, width_values
        Only these depths and widths; those above the teacher's are left out. None: all from 1 up.
    activation, normalization, kernel_size, strides, stem_channels, stem_stride, base_channels
        Of all networks, see :class:`WideResNetConfig`.
    scales, base_width, cardinality, se_reduction, preact_fix
        Of the robust block, see :class:`WideResNetConfig`.
    normalize
        Input normalisation, see :class:`WideResNetConfig`.

    Raises
    ------
    UserError
        If an argument is not allowed, or no value is left for a choice.
    """

    validate: Callable[[Mapping[str, Any]], None]  # NNI ships no types
    add_mutable: Callable[[Any], Any]
    simplify: Callable[[], dict[str, Any]]

    def __init__(
        self,
        num_classes: int = 10,
        *,
        depths: int | Sequence[int] = (4, 4, 4),
        widths: int | Sequence[int] = (10, 10, 10),
        blocks: str | Sequence[str] = "basic",
        search_blocks: bool | Sequence[bool] = False,
        depth_values: Sequence[int] | None = None,
        width_values: Sequence[int] | None = None,
        activation: str | Sequence[str] = "ReLU",
        normalization: str | Sequence[str] = "BatchNorm",
        kernel_size: int | Sequence[int] = 3,
        strides: int | Sequence[int] = (1, 2, 2),
        stem_channels: int = 16,
        stem_stride: int = 1,
        base_channels: int | Sequence[int] = (16, 32, 64),
        scales: int = 8,
        base_width: int = 10,
        cardinality: int = 4,
        se_reduction: int = 64,
        preact_fix: bool = False,
        normalize: str | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        teacher = WideResNetConfig(
            num_classes=num_classes,
            depths=depths,
            widths=widths,
            blocks=blocks,
            activation=activation,
            normalization=normalization,
            kernel_size=kernel_size,
            strides=strides,
            stem_channels=stem_channels,
            stem_stride=stem_stride,
            base_channels=base_channels,
            scales=scales,
            base_width=base_width,
            cardinality=cardinality,
            se_reduction=se_reduction,
            preact_fix=preact_fix,
            normalize=normalize,
        )
        searched = searched_stages(search_blocks)
        depth_choices = allowed_values("depth_values", depth_values, teacher.depths)
        width_choices = allowed_values("width_values", width_values, teacher.widths)
        # Whether robust blocks can be as narrow as the narrowest choice is told at once.
        dataclasses.replace(
            teacher,
            widths=[min(values) for values in width_choices],
            blocks=[
                "robust" if choice else own
                for choice, own in zip(searched, teacher.blocks, strict=True)
            ],
        )
        self._assemble(teacher)
        for index, searches in enumerate(searched):
            with label_scope(f"stage{index + 1}"):
                self.add_mutable(Categorical(depth_choices[index], label="depth"))
                self.add_mutable(Categorical(width_choices[index], label="width"))
                if searches:
                    self.add_mutable(Categorical(BLOCKS, label="block"))

    @classmethod
    def create_fixed_module(
        cls,
        sample: dict[str, Any],
        num_classes: int = 10,
        *,
        search_blocks: bool | Sequence[bool] = False,
        depth_values: Sequence[int] | None = None,
        width_values: Sequence[int] | None = None,
        **settings: Any,
    ) -> WideResNet:
        """What the constructor gives in a trial: the plain network (called by NNI)."""
        return WideResNet(decided(WideResNetConfig(num_classes, **settings), sample))

    @classmethod
    def extra_oneshot_hooks(cls, strategy: Any) -> list[Callable[..., Any]]:
        """Refuse one-shot strategies, which would train the teacher only (called by NNI).

        Raises
        ------
        UserError
            Always.
        """
        raise UserError(
            f"strategy {type(strategy).__name__} is not allowed with WideResNetSpace; its networks "
            "do not share weights, so a strategy that trains each by itself is needed"
        )

    def freeze(self, sample: Mapping[str, Any]) -> WideResNet:
        """The plain network of a sample, with fresh weights on torch's default device.

        Parameters
        ----------
        sample
            A value for every label.

        Raises
        ------
        nni.mutable.exception.SampleValidationError
            If the sample is not in the space.
        """
        return WideResNet(self.network_config(sample)).train(self.training)

    def inherit(
        self,
        sample: Mapping[str, Any],
        teacher_network: nn.Module,
        *,
        channels: str = "magnitude",
        blocks: str = "first",
    ) -> WideResNet:
        """The plain network of a sample with copies of a trained teacher's weights, cut to size.

        The residual stream of a stage keeps the same channels in all blocks; identity shortcuts
        between stages keep theirs together. Robust blocks keep as many channels of every group, the
        same in all slices. A stage whose type of block is not the teacher's starts fresh, and so
        does what reads its output: the first norm, convolution and shortcut after it. Where the
        smaller network has an identity shortcut and the teacher a convolution, there is nothing to
        inherit; the other way round the convolution picks the kept channels.

        Statistics of batch normalisation are those of the teacher: recalibrate them
        (``recalibrate_batches`` of the evaluator) or train on.

        Parameters
        ----------
        sample
            A value for every label.
        teacher_network
            A :class:`WideResNet`, a :class:`WideResNetSpace`, or another network with the names and
            shapes of this space's teacher (such as RobustBench's). It may be larger than the
            teacher of this space; otherwise it must be built alike. It is left as it is.
        channels
            ``"magnitude"`` keeps channels by weight: of the stream those with the largest sum of
            absolute scales of the norms that read them, inside blocks those whose filters have the
            largest L1 norm. ``"first"`` keeps the first ones.
        blocks
            ``"first"`` keeps the first blocks of a stage, ``"even"`` its first block and evenly
            spaced ones up to its last.

        Returns
        -------
        WideResNet
            On the teacher's device, with as many outputs as the teacher has.

        Raises
        ------
        nni.mutable.exception.SampleValidationError
            If the sample is not in the space.
        UserError
            If a rule is unknown, or the network is none of which this one is a part.
        """
        wanted = self.network_config(sample)
        state = teacher_network.state_dict()
        teacher, wanted = match_teacher(teacher_network, state, self.config, wanted, WideResNet)
        taken = inherited_state(state, teacher, wanted, channels=channels, blocks=blocks)
        network = WideResNet(wanted).train(self.training)
        network.load_state_dict({**network.state_dict(), **taken})
        return network.to(state["fc.weight"].device)

    def network_config(self, sample: Mapping[str, Any]) -> WideResNetConfig:
        """What describes a sample's network; its ``arguments()`` give the space below it.

        Raises
        ------
        nni.mutable.exception.SampleValidationError
            If the sample is not in the space.
        """
        self.validate(sample)
        return decided(self.config, sample)

    def below(
        self, sample: Mapping[str, Any], *, search_blocks: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The space of all networks below a sample's network, which then is their teacher.

        Parameters
        ----------
        sample
            A value for every label.
        search_blocks
            Whether the type of block is a choice there.

        Returns
        -------
        tuple
            Arguments of that space, and the teacher's sample in it.

        Raises
        ------
        nni.mutable.exception.SampleValidationError
            If the sample is not in the space.
        """
        config = self.network_config(sample)
        teacher: dict[str, Any] = {}
        for index, stage in enumerate(config.stages(), 1):
            teacher |= {
                f"stage{index}/depth": stage.depth,
                f"stage{index}/width": config.widths[index - 1],  # type: ignore[index]
            }
            if search_blocks:
                teacher[f"stage{index}/block"] = stage.block
        extra = {"search_blocks": True} if search_blocks else {}
        return config.arguments() | extra, teacher

    def cost(self, sample: Mapping[str, Any], input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Parameters and MACs of a sample's network for one picture, in closed form."""
        return network_cost(decided(self.config, sample), input_shape)

    @classmethod
    def decode(
        cls, code: str, *, search_blocks: bool | Sequence[bool] = False, **_: Any
    ) -> dict[str, Any]:
        """Sample of a code such as ``"14x5 14x7 7x3"``: depth x width of each stage.

        Where the type of block is a choice, ``b`` (basic) or ``r`` (robust) follows: ``"5x4r"``.

        Raises
        ------
        UserError
            If the code is malformed.
        """
        return decode(code, search_blocks)

    @classmethod
    def read_foreign(cls, value: Mapping[str, Any], path: Path) -> Architecture | None:
        """The architecture of a model file of the authors, see :func:`from_upstream_yaml`."""
        model = value.get("model", value)
        if not isinstance(model, Mapping) or "depth_configs" not in model:
            return None
        return from_upstream_yaml(path)

    @classmethod
    def encode(cls, sample: Mapping[str, Any]) -> str:
        """Code of a sample, inverse of :meth:`decode`.

        Raises
        ------
        UserError
            If a value is missing.
        """
        return encode(sample)

    def cell_graphs(self, sample: Mapping[str, Any]) -> list[CellGraph]:
        """Drawings of the three stages; equal blocks are drawn once."""
        config = decided(self.config, sample)
        return [_graph(config, index, stage) for index, stage in enumerate(config.stages(), 1)]


def _graph(config: WideResNetConfig, index: int, stage: Stage) -> CellGraph:
    """Drawing of a stage: its first block, and one that stands for all others."""
    size = stage.kernel_size
    if stage.block == "basic":
        body = f"2 conv {size}x{size}"
    else:
        convs = max(config.scales - 1, 1)
        body = f"conv 1x1, {convs} conv {size}x{size}, conv 1x1, SE"
    names = ["block 1", f"blocks 2-{stage.depth}" if stage.depth > 2 else "block 2"]
    nodes = ("in", *names[: min(stage.depth, 2)])
    changes = stage.stride > 1 or stage.in_channels != stage.out_channels
    edges: list[tuple[str, str, str]] = []
    for source, target in itertools.pairwise(nodes):
        first = source == "in"
        edges.append((source, target, body))
        edges.append((source, target, "conv 1x1" if first and changes else "identity"))
    return CellGraph(
        title=f"stage {index}: {stage.depth} {stage.block} block{'s' * (stage.depth > 1)}, "
        f"{stage.channels} channels, stride {stage.stride}",
        nodes=nodes,
        edges=tuple(edges),
        inputs=nodes[:1],
        outputs=nodes[-1:],
    )
