"""Sub-networks with weights of their teacher: which blocks and channels stay, and their tensors.

Channels of the residual stream are chosen once per stage, since every block of it adds to the same
stream; the channels inside a block are chosen block by block. The scores are those of network
slimming (Liu et al., https://arxiv.org/abs/1708.06519: the scale of batch normalisation) for the
stream and of filter pruning (Li et al., https://arxiv.org/abs/1608.08710: the L1 norm of a filter)
inside blocks. Everything works on state dicts: copies are cut out of them, and nothing is run.

Of ``nni.compression`` nothing is used. Its `L1NormPruner` chooses the same inner channels as
`magnitude` does here (tests compare the two), but it wraps the layers of the living teacher to do
so and knows neither the hierarchy nor the groups of robust blocks; `ModelSpeedup`, which would cut
by its masks, fails in its tracer from torch 2.2 on (NNI issue 5768).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nni_robust.errors import UserError, nearest

from ._wide_resnet_config import Stage, WideResNetConfig

__all__ = ["BLOCK_RULES", "CHANNEL_RULES", "inherited_state"]

#: How channels are chosen: those of the largest weights, or the first ones.
CHANNEL_RULES = ("magnitude", "first")
#: Which blocks stay besides a stage's first: those that follow it, or evenly spaced ones.
BLOCK_RULES = ("first", "even")

State = Mapping[str, Tensor]


def inherited_state(
    state: State,
    teacher: WideResNetConfig,
    student: WideResNetConfig,
    *,
    channels: str = "magnitude",
    blocks: str = "first",
) -> dict[str, Tensor]:
    """The tensors that a sub-network takes over from its teacher, as copies.

    Parameters
    ----------
    state
        State dict of the teacher.
    teacher, student
        What the two networks are. They differ in depths, widths and types of block only.
    channels, blocks
        See :meth:`.wide_resnet.WideResNetSpace.inherit`.

    Returns
    -------
    dict[str, Tensor]
        Names and shapes as in the student's state dict. What is missing has nothing to inherit and
        keeps its fresh weights: stages of another type of block, and what reads their outputs.

    Raises
    ------
    UserError
        If a rule is unknown.
    """
    for key, value, allowed in (
        ("channels", channels, CHANNEL_RULES),
        ("blocks", blocks, BLOCK_RULES),
    ):
        if value not in allowed:
            raise UserError(
                f"inherit: {key}: {value!r} is not allowed{nearest(str(value), allowed)} "
                f"(allowed: {', '.join(allowed)})"
            )
    cut = _Cut(state, magnitude=channels == "magnitude")
    pairs = list(zip(teacher.stages(), student.stages(), strict=True))
    kept = [_kept_blocks(big.depth, small.depth, blocks) for big, small in pairs]
    cut.take("stem_conv.weight")
    for name in ("mu", "sigma"):  # of the input normalisation
        if student.normalize is not None and name in state:
            cut.take(name)
    tied = [_same_stream(big, small) for big, small in pairs]
    # Channels of the stream that enters the stage; None where they are not the teacher's.
    stream: Tensor | None = torch.arange(teacher.stem_channels)
    for index, (big, small) in enumerate(pairs):
        entry = stream
        if big.block != small.block:
            stream = None
            continue
        if stream is None or not tied[index]:
            scores = _stream_scores(cut, teacher, index, kept[index])
            for later in range(index + 1, len(pairs)):
                if not tied[later]:
                    break
                scores = scores + _stream_scores(cut, teacher, later, kept[later])
            stream = cut.choose(scores, small.out_channels)
        for place, source in enumerate(kept[index]):
            old, new = f"blocks.{index}.layer.{source}", f"blocks.{index}.layer.{place}"
            _take_block(cut, teacher, big, small, old, new, stream if place else entry, stream)
    if stream is not None:
        cut.take_norm("norm1", "norm1", stream)
        cut.take("fc.weight", columns=stream)
        cut.take("fc.bias")
    return cut.result


class _Cut:
    """Cuts tensors out of a state dict, and knows how channels are chosen."""

    def __init__(self, state: State, *, magnitude: bool) -> None:
        self.state, self.magnitude = state, magnitude
        self.result: dict[str, Tensor] = {}

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """The `count` best of the scores (or the first), in their old order; ties: the first."""
        if not self.magnitude:
            return torch.arange(count)
        return torch.sort(torch.argsort(scores, descending=True, stable=True)[:count]).values

    def l1(self, name: str) -> Tensor:
        """L1 norm of each filter, float64 on the CPU."""
        return self.state[name].detach().double().abs().flatten(1).sum(1).cpu()

    def scale(self, name: str) -> Tensor | None:
        """Absolute scale of each channel of a norm, None where it has none."""
        weight = self.state.get(f"{name}.weight")
        return None if weight is None else weight.detach().double().abs().cpu()

    def take(
        self,
        old: str,
        new: str | None = None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> None:
        """Copy a tensor, or only those rows (outputs) and columns (inputs) of it."""
        tensor = self.state[old].detach().clone()
        for dim, indices in enumerate((rows, columns)):
            if indices is not None:
                tensor = tensor.index_select(dim, indices.to(tensor.device))
        self.result[new or old] = tensor

    def take_norm(self, old: str, new: str, indices: Tensor) -> None:
        """Copy a norm's scale, shift and statistics of some channels."""
        for part in ("weight", "bias", "running_mean", "running_var"):
            if f"{old}.{part}" in self.state:
                self.take(f"{old}.{part}", f"{new}.{part}", indices)
        if f"{old}.num_batches_tracked" in self.state:
            self.take(f"{old}.num_batches_tracked", f"{new}.num_batches_tracked")


def _kept_blocks(depth: int, count: int, rule: str) -> list[int]:
    """Which blocks of a stage stay; the first always does, since it changes the shape."""
    if rule == "first" or count == 1:
        return list(range(count))
    return [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def _keeps_stream(stage: Stage) -> bool:
    """Whether the stage's first block has an identity shortcut: the stream goes on unchanged."""
    return stage.stride == 1 and stage.in_channels == stage.out_channels


def _same_stream(big: Stage, small: Stage) -> bool:
    """Whether a stage must keep the channels that come in, in the teacher and in the student."""
    return big.block == small.block and _keeps_stream(big) and _keeps_stream(small)


def _stream_scores(cut: _Cut, teacher: WideResNetConfig, index: int, kept: Sequence[int]) -> Tensor:
    """How much each channel of a stage's stream counts.

    Summed scales of the norms that see it: the first norm of each kept block after the first, and
    the one that reads the stage's output. In robust blocks the first norm has no effect without
    `preact_fix`; there it is the norm before squeeze-excite, which has the same channels. Norms
    without a scale: summed L1 norms of the filters that write the channel.
    """
    stage = teacher.stages()[index]
    prefix = f"blocks.{index}.layer"
    # What stage `index + 1` would read a kept stream by is read by the teacher's own next norm.
    last = index + 1 == len(teacher.stages())
    reader = "norm1" if last else f"blocks.{index + 1}.layer.0.bn1"
    robust = stage.block == "robust"
    names = [reader]
    if robust:
        names += [f"{prefix}.{block}.se_bn" for block in kept]
    if not robust or teacher.preact_fix:
        names += [f"{prefix}.{block}.bn1" for block in kept[1:]]
    scales = [scale for name in names if (scale := cut.scale(name)) is not None]
    if scales:
        return torch.stack(scales).sum(0)
    writer = "conv3" if robust else "conv2"
    return torch.stack([cut.l1(f"{prefix}.{block}.{writer}.weight") for block in kept]).sum(0)


def _take_block(
    cut: _Cut,
    teacher: WideResNetConfig,
    big: Stage,
    small: Stage,
    old: str,
    new: str,
    entry: Tensor | None,
    exit_: Tensor,
) -> None:
    """Cut one block; what reads a stream that is not the teacher's stays fresh.

    Parameters
    ----------
    cut, teacher
        Where from.
    big, small
        The stage in the teacher and in the student.
    old, new
        Name of the block in the two.
    entry, exit_
        Channels of the teacher's stream that the block reads and writes.
    """
    if entry is not None:
        cut.take_norm(f"{old}.bn1", f"{new}.bn1", entry)
    _take_shortcut(cut, small, old, new, entry, exit_)
    if big.block == "basic":
        inner = cut.choose(cut.l1(f"{old}.conv1.weight"), small.channels)
        if entry is not None:
            cut.take(f"{old}.conv1.weight", f"{new}.conv1.weight", inner, entry)
        cut.take_norm(f"{old}.bn2", f"{new}.bn2", inner)
        cut.take(f"{old}.conv2.weight", f"{new}.conv2.weight", exit_, inner)
        return
    part = teacher.slice_channels(big.channels)
    chosen, within = _slice_channels(cut, teacher, small, old, part)
    inner = torch.cat([chosen + index * part for index in range(teacher.scales)])
    if entry is not None:
        cut.take(f"{old}.conv1.weight", f"{new}.conv1.weight", inner, entry)
    cut.take_norm(f"{old}.bn2", f"{new}.bn2", inner)
    for suffix in _hierarchy(teacher):
        # A grouped convolution sees the channels of its own group only.
        _take_grouped(cut, f"{old}.conv2{suffix}.weight", f"{new}.conv2{suffix}.weight", within)
        cut.take_norm(f"{old}.bn3{suffix}", f"{new}.bn3{suffix}", chosen)
    cut.take(f"{old}.conv3.weight", f"{new}.conv3.weight", exit_, inner)
    cut.take_norm(f"{old}.se_bn", f"{new}.se_bn", exit_)
    hidden = cut.choose(cut.l1(f"{old}.se.fc.0.weight"), small.out_channels // teacher.se_reduction)
    cut.take(f"{old}.se.fc.0.weight", f"{new}.se.fc.0.weight", hidden, exit_)
    cut.take(f"{old}.se.fc.2.weight", f"{new}.se.fc.2.weight", exit_, hidden)


def _take_shortcut(
    cut: _Cut, small: Stage, old: str, new: str, entry: Tensor | None, exit_: Tensor
) -> None:
    """The shortcut's convolution, where the student's block has one."""
    if entry is None or not new.endswith(".layer.0") or _keeps_stream(small):
        return
    name = f"{old}.shortcut.0.weight"
    if name in cut.state:
        cut.take(name, f"{new}.shortcut.0.weight", exit_, entry)
        return
    # The teacher has an identity here: pick the kept channels of it.
    weight = cut.state[f"{old}.conv1.weight"]
    pick = (exit_[:, None] == entry[None, :]).to(weight.device, weight.dtype)
    cut.result[f"{new}.shortcut.0.weight"] = pick[:, :, None, None]


def _hierarchy(config: WideResNetConfig) -> list[str]:
    """Ends of the names of a robust block's convolutions."""
    return [""] if config.scales == 1 else [f".{i}" for i in range(config.scales - 1)]


def _slice_channels(
    cut: _Cut, teacher: WideResNetConfig, small: Stage, old: str, part: int
) -> tuple[Tensor, Tensor]:
    """Channels of a slice that stay, the same in all slices of a block, as many of each group.

    One slice's result is added to the next, so that channel c is the same channel in all of them.
    Scores are summed over the slices: L1 norms of the filters of `conv1` and of the slice's own
    convolution that make the channel.

    Returns
    -------
    tuple
        Indices within a slice; and, of shape (groups, kept per group), within each group.
    """
    groups = teacher.cardinality
    each = teacher.slice_channels(small.channels) // groups
    scores = cut.l1(f"{old}.conv1.weight").view(teacher.scales, part).sum(0)
    for suffix in _hierarchy(teacher):
        scores = scores + cut.l1(f"{old}.conv2{suffix}.weight")
    within = torch.stack([cut.choose(row, each) for row in scores.view(groups, -1)])
    offsets = torch.arange(groups)[:, None] * (part // groups)
    return (within + offsets).flatten(), within


def _take_grouped(cut: _Cut, old: str, new: str, within: Tensor) -> None:
    """Cut a grouped convolution whose inputs and outputs are the same channels."""
    weight = cut.state[old].detach()
    filters = weight.view(len(within), -1, *weight.shape[1:])
    kept = [
        group.index_select(0, indices).index_select(1, indices)
        for group, indices in zip(filters, within.to(weight.device), strict=True)
    ]
    cut.result[new] = torch.cat(kept)
