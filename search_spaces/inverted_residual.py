"""Networks of inverted residuals whose widths are searched block by block: RNAS-CL's students.

Nath, Wang, Yang, "RNAS-CL: Robust Neural Architecture Search by Cross-Layer Knowledge
Distillation", arXiv 2301.08092 (UAI 2024: "Neural Architecture Search Finds Robust Models by
Knowledge Distillation"). Template, widths, block and initialisation are those of the authors' code
(https://github.com/SDL-ASU/RNAS-CL, commit f490b73), as are the masks on channels, after Wan et
al., "FBNetV2", CVPR 2020, arXiv 2004.05565. Kernel size (3), depth and expansion (6) are not
searched.

Differences from the released code:

* Its final network is the widest one times masks of 0 and 1; here it is sliced (and computes the
  same). Its parameter counts, as the paper's, are those of the sliced one.
* The paper counts inner widths as six times the chosen input width, while the masked network
  computes with six times the largest one. Here `mid` says which, the same for masks, networks and
  cost.
* A shortcut stays where a chosen width differs from the one before: channels are cut off or count
  as zero. That is what masks compute.
* The cost is that of the network; the released formula is ``relaxed(legacy_cost=True)``.

Reading order: what describes the networks (`_inverted_residual_config`), their cost
(`_inverted_residual_cost`), layers and masks (`_inverted_residual_layers`), the networks
(`_inverted_residual_network`), the relaxed form (`_inverted_residual_relaxed`), codes
(`_inverted_residual_sample`), the space (here).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nni.mutable import Categorical, label_scope
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nni_robust.architecture.graph import CellGraph
from nni_robust.cost import Cost
from nni_robust.errors import UserError

from ._inverted_residual_config import Block, make_config
from ._inverted_residual_cost import Width, network_cost
from ._inverted_residual_network import InvertedResidualBackbone, InvertedResidualNet, prefixes
from ._inverted_residual_relaxed import RelaxedInvertedResidual
from ._inverted_residual_sample import decode, encode

__all__ = ["InvertedResidualNet", "InvertedResidualSpace", "RelaxedInvertedResidual"]


class InvertedResidualSpace(ModelSpace, InvertedResidualBackbone):
    """All widths of one template, as an NNI model space.

    Every block has the choice ``"stage1/block2/width"``, the width of its output, widest first.
    NNI's multi-trial strategies take the space as it is; gradient-based ones use :meth:`relaxed`.
    Before any decision it computes as its widest network. Networks get fresh weights from
    :meth:`freeze`, trained ones from :meth:`inherit`.

    Parameters
    ----------
    num_classes
        Outputs of the classifier.
    preset
        ``s3``, ``s5``, ``s7``, ``s9``, ``s18`` (so many blocks in each stage, 16, 32 and 64
        channels), ``m``, ``l``, ``imagenet-100`` (pictures of 224 pixels), all with the authors'
        widths; ``s7w``: s7 with 25 to 100 % of the largest width. None where `stages` are given.
    stages
        A template of your own: mappings with ``blocks``, ``widths`` (candidates), ``stride`` of the
        first block (1), ``expansion`` (6). Without a preset.
    stem_channels, stem_stride
        Of the first convolution. None: 16, and stride 2 as in the released code, also for pictures
        of 32 pixels. Take 1 for tiny pictures, such as those of 8 pixels.
    head_channels
        Width of the layer before the classifier, None for the preset's: 1984 for ``imagenet-100``,
        no such layer for the others.
    mid
        ``"input"``: a block is inside as wide as its expansion times its input's chosen width, as
        the paper counts. ``"full"``: times its input's largest width, as the released masked
        network computes.
    bn_momentum, bn_eps
        Of the norms. The released momentum takes some thousand batches until running statistics are
        useful; trainings of a few epochs want 0.1.
    zero_gamma
        Start blocks with a shortcut as the identity: the weight of the last norm is 0. The released
        code does so at first, and then sets it to 1.
    normalize
        Input normalisation inside the network: None, ``"cifar10"``, or a pair of three means and
        three standard deviations, for pictures in [0, 1].

    Raises
    ------
    UserError
        If an argument is not allowed.
    """

    validate: Callable[[Mapping[str, Any]], None]  # NNI ships no types
    add_mutable: Callable[[Any], Any]

    def __init__(
        self,
        num_classes: int = 10,
        *,
        preset: str | None = "s7",
        stages: Sequence[Mapping[str, Any]] | None = None,
        stem_channels: int | None = None,
        stem_stride: int | None = None,
        head_channels: int | None = None,
        mid: str = "input",
        bn_momentum: float = 0.003,
        bn_eps: float = 1e-5,
        zero_gamma: bool = False,
        normalize: str | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        config = make_config(
            num_classes,
            preset,
            stages,
            stem_channels=stem_channels,
            stem_stride=stem_stride,
            head_channels=head_channels,
            mid=mid,
            bn_momentum=bn_momentum,
            bn_eps=bn_eps,
            zero_gamma=zero_gamma,
            normalize=normalize,
        )
        choices = config.choices()
        self._assemble(config, {label: widths[0] for label, widths in choices.items()})
        for label, widths in choices.items():
            stage, block, name = label.split("/")
            with label_scope(stage), label_scope(block):
                self.add_mutable(Categorical(list(widths), label=name))

    @classmethod
    def create_fixed_module(
        cls,
        sample: dict[str, Any],
        num_classes: int = 10,
        *,
        preset: str | None = "s7",
        stages: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> InvertedResidualNet:
        """What the constructor gives in a trial: the plain network (called by NNI)."""
        config = make_config(num_classes, preset, stages, **settings)
        return InvertedResidualNet(config, {label: sample[label] for label in config.choices()})

    @classmethod
    def extra_oneshot_hooks(cls, strategy: Any) -> list[Callable[..., Any]]:
        """Refuse NNI's one-shot strategies, which would train the widest network (called by NNI).

        Raises
        ------
        UserError
            Always.
        """
        raise UserError(
            f"strategy {type(strategy).__name__} is not allowed with InvertedResidualSpace; one "
            "that searches by nni_robust.relaxation.relax(space), or trains each network, is needed"
        )

    def freeze(self, sample: Mapping[str, Any]) -> InvertedResidualNet:
        """The plain network of a sample, with fresh weights on torch's default device.

        Raises
        ------
        nni.mutable.exception.SampleValidationError
            If the sample is not in the space.
        """
        self.validate(sample)
        return InvertedResidualNet(self.config, self._widths(sample)).train(self.training)

    def inherit(self, sample: Mapping[str, Any], network: nn.Module) -> InvertedResidualNet:
        """The plain network of a sample, with copies of the first channels of a wider one.

        Parameters
        ----------
        sample
            A value for every label.
        network
            A network of this template with at least these widths: the relaxed one, the space
            itself, or a plain one.

        Raises
        ------
        UserError
            If the network is of another template, or narrower.
        nni.mutable.exception.SampleValidationError
            If the sample is not in the space.
        """
        self.validate(sample)
        with torch.device("meta"):
            own = InvertedResidualNet(self.config, self._widths(sample))
        state = network.state_dict()
        try:
            own.load_state_dict(prefixes(state, own.state_dict()), strict=True, assign=True)
        except KeyError as e:
            raise UserError(f"the network to inherit from is of another template: no {e}") from None
        except ValueError as e:
            raise UserError(f"the network to inherit from does not fit: {e}") from None
        return own.train(network.training)

    def relaxed(self, *, legacy_cost: bool = False) -> RelaxedInvertedResidual:
        """One network of all widths, differentiable in their weights; with copies of this space's
        weights, or fresh ones if it has none (made on the meta device).

        Parameters
        ----------
        legacy_cost
            Let ``cost()["macs"]`` be the released code's cost, which counts depthwise convolutions
            as dense ones, and leaves out stem and classifier.
        """
        result = RelaxedInvertedResidual(self.config, self.inherit, legacy_cost)
        state = self.state_dict()
        if not any(tensor.is_meta for tensor in state.values()):
            result.network.load_state_dict(state)
        result.network.train(self.training)
        return result

    def cost(self, sample: Mapping[str, Any], input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Parameters and MACs of a sample's network for one picture, in closed form."""
        widths = {label: Width.of(width) for label, width in self._widths(sample).items()}
        params, macs = network_cost(self.config, widths, input_shape)
        return Cost(params=params, macs=macs)

    def attributes(self, sample: Mapping[str, Any]) -> dict[str, float]:
        """What tells whether a search of widths decided anything.

        Returns
        -------
        dict[str, float]
            ``width_ratio``: mean of the chosen widths over the largest ones. ``narrowest`` and
            ``widest``: shares of the blocks at the lowest and at the highest width.
        """
        choices, widths = self.config.choices(), self._widths(sample)
        shares = [width / choices[label][0] for label, width in widths.items()]
        lowest = [width == choices[label][-1] for label, width in widths.items()]
        return {
            "width_ratio": sum(shares) / len(shares),
            "narrowest": sum(lowest) / len(lowest),
            "widest": sum(share == 1 for share in shares) / len(shares),
        }

    @classmethod
    def decode(
        cls,
        code: str,
        *,
        preset: str | None = "s7",
        stages: Sequence[Mapping[str, Any]] | None = None,
        **_: Any,
    ) -> dict[str, int]:
        """Sample of a code such as ``"16x7 20x7 52x4,56x2,52"``: widths of each stage's blocks.

        Raises
        ------
        UserError
            If the code is malformed or for another number of blocks.
        """
        return decode(code, [stage.blocks for stage in make_config(1, preset, stages).stages])

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
        """Drawings of the stages, block by block."""
        widths = self._widths(sample)
        return [
            _graph(number, blocks, widths)
            for number, blocks in enumerate(self.config.blocks(), start=1)
        ]

    def _widths(self, sample: Mapping[str, Any]) -> dict[str, int]:
        for label in self.config.choices():
            if label not in sample:
                raise UserError(f"the inverted-residual sample has no value for '{label}'")
        return {label: sample[label] for label in self.config.choices()}


def _graph(number: int, blocks: Sequence[Block], widths: Mapping[str, int]) -> CellGraph:
    nodes, edges = ["in"], []
    for index, block in enumerate(blocks, start=1):
        target = f"{index}: {widths[block.label]}"
        expand = "conv 1x1, " if block.expansion > 1 else ""
        edges.append((nodes[-1], target, f"{expand}dw 3x3, conv 1x1"))
        if block.shortcut:
            edges.append((nodes[-1], target, "identity"))
        nodes.append(target)
    count = len(blocks)
    return CellGraph(
        title=f"stage {number}: {count} block{'s' * (count > 1)}, expansion "
        f"{blocks[0].expansion}, stride {blocks[0].stride}; block: channels",
        nodes=tuple(nodes),
        edges=tuple(edges),
        inputs=("in",),
        outputs=(nodes[-1],),
    )
