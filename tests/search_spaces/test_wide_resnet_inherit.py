"""Sub-networks with the weights of their teacher, against the teacher itself and against NNI."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from nni_robust.errors import UserError
from nni_robust.search_spaces import WideResNet, WideResNetConfig, WideResNetSpace

SMALL: dict[str, Any] = {"stem_channels": 4, "base_channels": [4, 4, 8]}
ROBUST: dict[str, Any] = {
    **SMALL,
    "scales": 3,
    "base_width": 80,
    "cardinality": 2,
    "se_reduction": 8,
}


def trained(seed: int = 0, **settings: Any) -> WideResNet:
    """A network in which every weight and statistic is its own number, as after a training."""
    generator = torch.Generator().manual_seed(seed)
    network = WideResNet(WideResNetConfig(**settings))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            noise = torch.rand(tensor.shape, generator=generator)
            if "running_var" in name or ("bn" in name and name.endswith("weight")):
                tensor.copy_(0.5 + noise)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            else:
                tensor.copy_((noise - 0.5) * (0.4 if tensor.dim() > 1 else 1))
    return network.eval()


def sample(depths: Any, widths: Any, blocks: Any = None) -> dict[str, Any]:
    chosen = {}
    for i in range(3):
        chosen |= {f"stage{i + 1}/depth": depths[i], f"stage{i + 1}/width": widths[i]}
        if blocks:
            chosen[f"stage{i + 1}/block"] = blocks[i]
    return chosen


SETTINGS = [
    {"depths": [2, 3, 1], "widths": [2, 3, 2], **SMALL},
    {"depths": [2, 3, 1], "widths": [2, 3, 2], "blocks": "robust", **ROBUST},
    {"depths": 2, "widths": 2, "blocks": ["basic", "robust", "basic"], **ROBUST, "scales": 1},
    {"depths": 2, "widths": 2, "blocks": "robust", **ROBUST, "preact_fix": True},
    {"depths": 2, "widths": 2, "normalization": "InstanceNorm", **SMALL},
    {"depths": 2, "widths": 2, "normalization": "LayerNorm", "activation": "SiLU", **SMALL},
    {"depths": 2, "widths": [1, 1, 2], "strides": [1, 1, 2], **SMALL, "normalize": "cifar10"},
]
IDS = ["basic", "robust", "mixed", "preact", "instance", "layer", "tied"]


@pytest.mark.parametrize("channels", ["magnitude", "first"])
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_the_whole_teacher_is_inherited_bit_for_bit(
    settings: dict[str, Any], channels: str
) -> None:
    teacher = trained(**settings)
    space = WideResNetSpace(**settings)
    config = teacher.config
    for blocks in ("first", "even"):
        network = space.inherit(
            sample(config.depths, config.widths), teacher, channels=channels, blocks=blocks
        ).eval()
        x = torch.rand(2, 3, 8, 8)
        assert torch.equal(network(x), teacher(x))
        assert network.state_dict().keys() == teacher.state_dict().keys()
        for name, tensor in teacher.state_dict().items():
            own = network.state_dict()[name]
            assert torch.equal(own, tensor)
            assert own.data_ptr() != tensor.data_ptr()


def silence(network: WideResNet, keep: dict[int, list[int]]) -> None:
    """Zero the stream's channels that are not kept: what writes, normalises and reads them."""
    state = network.state_dict()
    for stage, kept in keep.items():
        channels = network.config.stages()[stage].out_channels
        dropped = [c for c in range(channels) if c not in kept]
        writers = ("conv2.weight", "conv3.weight", "shortcut.0.weight", "se.fc.2.weight")
        for name, tensor in state.items():
            inside = name.startswith(f"blocks.{stage}.")
            robust = network.config.blocks[stage] == "robust"
            wrote = inside and name.endswith(writers) and not (robust and ".conv2" in name)
            first = inside and ".layer.0.bn1" in name
            norm = inside and not first and (".bn1." in name or ".se_bn." in name)
            after = name.startswith((f"blocks.{stage + 1}.layer.0.bn1", *["norm1"] * (stage == 2)))
            if wrote or ((norm or after) and name.endswith(("weight", "bias"))):
                tensor[dropped] = 0.0


def silence_inner(network: WideResNet, count: dict[int, int]) -> None:
    """Zero all but the last `count` inner channels of every basic block of a stage."""
    for stage, number in count.items():
        for block in network.blocks[stage].layer:
            for tensor in (block.conv1.weight, block.bn2.weight, block.bn2.bias):
                tensor.data[: len(tensor) - number] = 0.0


def test_a_cut_network_computes_as_the_teacher_with_silent_channels() -> None:
    """Channels of which nothing is heard are dropped, and the outputs stay."""
    settings = {"depths": [2, 3, 2], "widths": [4, 4, 4], **SMALL}
    teacher = trained(**settings)
    # Width 3 of 4: 12 of 16 channels, 12 of 16, 24 of 32.
    keep = {0: [*range(3, 15)], 1: [*range(2, 8), *range(9, 15)], 2: [*range(8, 32)]}
    silence(teacher, keep)
    silence_inner(teacher, {0: 12, 1: 12, 2: 24})
    network = WideResNetSpace(**settings).inherit(sample([2, 3, 2], [3, 3, 3]), teacher).eval()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(network(x), teacher(x), rtol=1e-5, atol=1e-5)
    assert network(x).std() > 1e-3
    block = teacher.blocks[1].layer[1]
    ours = network.blocks[1].layer[1]
    assert torch.equal(ours.bn1.running_var, block.bn1.running_var[keep[1]])
    assert torch.equal(ours.bn2.running_mean, block.bn2.running_mean[4:])
    assert ours.bn1.num_batches_tracked == 7


@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("preact_fix", [False, True])
def test_cut_robust_blocks_compute_as_the_teacher(scales: int, preact_fix: bool) -> None:
    """The same for the hierarchy, its groups and squeeze-excite; se_bn chooses the stream."""
    settings = {
        **{"depths": [2, 2, 2], "widths": [4, 4, 2], "blocks": "robust"},
        **ROBUST,
        "scales": scales,
        "preact_fix": preact_fix,
    }
    teacher = trained(**settings)
    config = teacher.config
    keep = {0: [*range(5, 37)], 1: [*range(8), *range(20, 44)]}  # 32 of 64 channels
    part = config.slice_channels(16)  # 16 channels of a slice in 2 groups of 8: 4 of each stay
    chosen = torch.tensor([1, 3, 4, 7, 8, 9, 14, 15])
    dropped = [c for c in range(part) if c not in chosen.tolist()]
    with torch.no_grad():
        silence(teacher, keep)
        for stage in (0, 1):
            for block in teacher.blocks[stage].layer:
                rows = [c + i * part for i in range(scales) for c in dropped]
                for tensor in (block.conv1.weight, block.bn2.weight, block.bn2.bias):
                    tensor[rows] = 0.0
                block.se.fc[0].weight[:4] = 0.0  # 8 hidden units, of which 4 stay
                convs = [block.conv2] if scales == 1 else block.conv2
                norms = [block.bn3] if scales == 1 else block.bn3
                for conv, norm in zip(convs, norms, strict=True):
                    for tensor in (conv.weight, norm.weight, norm.bias):
                        tensor[dropped] = 0.0
    network = WideResNetSpace(**settings).inherit(sample([2, 2, 2], [2, 2, 2]), teacher).eval()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(network(x), teacher(x), rtol=1e-5, atol=1e-5)
    ours, theirs = network.blocks[0].layer[1], teacher.blocks[0].layer[1]
    assert torch.equal(ours.bn2.weight[:8], theirs.bn2.weight[chosen])
    assert torch.equal(ours.se_bn.running_mean, theirs.se_bn.running_mean[keep[0]])


def test_inner_channels_are_those_of_nnis_l1_norm_pruner() -> None:
    """A second implementation of filter pruning agrees on every block."""
    from nni.compression.pruning import L1NormPruner

    settings = {"depths": [2, 3, 1], "widths": [4, 4, 4], **SMALL}
    teacher = trained(3, **settings)
    network = WideResNetSpace(**settings).inherit(sample([2, 3, 1], [2, 2, 2]), teacher)
    names = [name for name, _ in teacher.named_modules() if name.endswith(".conv1")]
    pruner = L1NormPruner(copy.deepcopy(teacher), [{"op_names": names, "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    modules, ours = dict(teacher.named_modules()), dict(network.named_modules())
    for name in names:
        kept = masks[name]["weight"].flatten(1).any(1).nonzero()[:, 0]
        norm = name.replace("conv1", "bn2")
        assert len(kept) == len(ours[norm].weight)
        assert torch.equal(ours[norm].weight, modules[norm].weight[kept])


def test_planted_channels_of_the_stream_are_found() -> None:
    """Large scales of the norms that read the stream mark its channels, in every stage."""
    settings = {"depths": [3, 2, 2], "widths": [4, 4, 4], **SMALL}
    teacher = trained(5, **settings)
    planted = {0: [1, 6, 11, 15], 1: [0, 2, 9, 10], 2: [3, 4, 5, 17, 21, 28, 30, 31]}
    with torch.no_grad():
        for stage, channels in planted.items():
            for block in teacher.blocks[stage].layer[1:]:
                block.bn1.weight[channels] = -9.0  # the size counts, not the sign
    network = WideResNetSpace(**settings).inherit(sample([3, 2, 2], [1, 1, 1]), teacher)
    for stage, channels in planted.items():
        ours, theirs = network.blocks[stage].layer[1], teacher.blocks[stage].layer[1]
        assert torch.equal(ours.bn1.bias, theirs.bn1.bias[channels])
    assert torch.equal(network.norm1.running_mean, teacher.norm1.running_mean[planted[2]])
    assert torch.equal(network.fc.weight, teacher.fc.weight[:, planted[2]])
    entry = network.blocks[2].layer[0]
    assert torch.equal(
        entry.shortcut[0].weight,
        teacher.blocks[2].layer[0].shortcut[0].weight[planted[2]][:, planted[1]],
    )


def test_first_channels_and_blocks() -> None:
    settings = {"depths": [5, 3, 2], "widths": [2, 2, 2], **SMALL}
    teacher = trained(**settings)
    space = WideResNetSpace(**settings)
    part = sample([3, 2, 1], [1, 2, 1])
    first = space.inherit(part, teacher, channels="first")
    even = space.inherit(part, teacher, channels="first", blocks="even")
    for place, (in_order, spread) in enumerate([(0, 0), (1, 2), (2, 4)]):
        for network, source in ((first, in_order), (even, spread)):
            expected = teacher.blocks[0].layer[source].conv2.weight[:4, :4]
            assert torch.equal(network.blocks[0].layer[place].conv2.weight, expected)
    assert torch.equal(even.blocks[1].layer[1].bn1.bias, teacher.blocks[1].layer[2].bn1.bias)


@pytest.mark.parametrize("blocks", ["basic", "robust"])
def test_cost_shapes_and_an_untouched_teacher(blocks: str) -> None:
    settings = {"depths": [3, 2, 2], "widths": [4, 3, 3], **ROBUST}
    teacher = trained(blocks=blocks, **settings)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    space = WideResNetSpace(blocks=blocks, search_blocks=True, **settings)
    part = sample([2, 1, 2], [3, 1, 2], [blocks] * 3)
    network = space.inherit(part, teacher)
    assert sum(p.numel() for p in network.parameters()) == space.cost(part).params
    assert network.config == space.network_config(part)
    assert teacher.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    network.train()(torch.rand(4, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in teacher.parameters())


def test_a_stage_of_the_other_type_starts_fresh_and_the_rest_is_inherited() -> None:
    settings = {"depths": [2, 2, 2], "widths": [2, 2, 2], **ROBUST}
    teacher = trained(**settings)
    space = WideResNetSpace(search_blocks=True, **settings)
    torch.manual_seed(11)
    network = space.inherit(sample([2] * 3, [2] * 3, ["basic", "robust", "basic"]), teacher)
    torch.manual_seed(11)
    fresh = WideResNet(network.config)
    theirs, ours, new = teacher.state_dict(), network.state_dict(), fresh.state_dict()
    inherited = {name for name in ours if not torch.equal(ours[name], new[name])}
    for name in ours:
        stage = name.split(".")[1] if name.startswith("blocks") else ""
        reads_fresh = name.startswith(
            tuple(f"blocks.2.layer.0.{part}" for part in ("bn1", "conv1", "shortcut"))
        )
        if stage == "1" or reads_fresh:
            assert name not in inherited
        else:
            assert torch.equal(ours[name], theirs[name]), name
    last = space.inherit(sample([2] * 3, [2] * 3, ["basic", "basic", "robust"]), teacher)
    assert torch.equal(last.fc.bias, torch.zeros(10))  # reads a fresh stage
    assert torch.equal(
        last.blocks[1].layer[1].conv2.weight, theirs["blocks.1.layer.1.conv2.weight"]
    )


def test_identity_between_stages() -> None:
    """Stages with one stream keep one choice; an identity becomes a picking convolution."""
    settings = {
        **{"depths": [2, 2, 1], "widths": [2, 2, 2], "strides": [1, 1, 2]},
        **{"stem_channels": 4, "base_channels": [4, 4, 8]},
    }
    teacher = trained(7, **settings)
    with torch.no_grad():
        teacher.blocks[0].layer[1].bn1.weight[[0, 1, 2, 3]] = 3.0
        teacher.blocks[1].layer[1].bn1.weight[[2, 3, 6, 7]] = 9.0  # outvotes the first stage
    space = WideResNetSpace(**settings)
    tied = space.inherit(sample([2, 2, 1], [1, 1, 2]), teacher)
    for stage in (0, 1):
        theirs = teacher.blocks[stage].layer[1].bn1.bias[[2, 3, 6, 7]]
        assert torch.equal(tied.blocks[stage].layer[1].bn1.bias, theirs)
    assert tied.blocks[1].layer[0].shortcut is None
    apart = space.inherit(sample([2, 2, 1], [2, 1, 2]), teacher)
    shortcut = apart.blocks[1].layer[0].shortcut
    assert shortcut is not None
    picked = shortcut[0].weight[:, :, 0, 0]
    assert torch.equal(picked, torch.eye(8)[[2, 3, 6, 7]])


class Foreign(nn.Module):
    """A network of another program with the same names."""

    def __init__(self, network: WideResNet) -> None:
        super().__init__()
        for name, module in network.named_children():
            self.add_module(name, module)


def test_teachers_of_other_kinds() -> None:
    settings = {"depths": [2, 1, 1], "widths": [2, 2, 2], **SMALL}
    teacher = trained(num_classes=7, **settings)
    small = WideResNetSpace(depths=1, widths=1, **SMALL)  # below a smaller network of the family
    part = sample([1] * 3, [1] * 3)
    expected = small.inherit(part, teacher)
    assert expected.fc.out_features == 7
    space = WideResNetSpace(**settings)
    supernet = WideResNetSpace(num_classes=7, **settings)
    supernet.load_state_dict(teacher.state_dict())
    for other in (supernet, Foreign(teacher)):
        network = space.inherit(part, other)
        for name, tensor in expected.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor)


def test_what_cannot_be_inherited_is_refused() -> None:
    settings = {"depths": [2, 1, 1], "widths": [2, 2, 2], **SMALL}
    space, teacher = WideResNetSpace(**settings), trained(**settings)
    part = sample([1, 1, 1], [1, 1, 1])
    with pytest.raises(
        UserError, match="channels: 'magnitudes' is not allowed; did you mean 'magn"
    ):
        space.inherit(part, teacher, channels="magnitudes")
    with pytest.raises(UserError, match="blocks: 'last' is not allowed"):
        space.inherit(part, teacher, blocks="last")
    narrow = trained(depths=[2, 1, 1], widths=[1, 2, 2], **SMALL)
    with pytest.raises(UserError, match=r"widths: \[2, 2, 2\] is no part of .* has \[1, 2, 2\]"):
        space.inherit(sample([1, 1, 1], [2, 2, 2]), narrow)
    smooth = trained(activation="SiLU", **settings)
    with pytest.raises(UserError, match=r"activation: \['ReLU', .* is no part of the teacher"):
        space.inherit(part, smooth)
    with pytest.raises(UserError, match=r"\(Linear\) is not built .* which has no 'weight'"):
        space.inherit(part, nn.Linear(3, 10))
    normalized = trained(normalize="cifar10", **settings)
    foreign = Foreign(normalized)
    foreign.register_buffer("mu", normalized.mu)
    with pytest.raises(UserError, match="which has no 'mu'"):
        space.inherit(part, foreign)
    wide = Foreign(trained(depths=[2, 1, 1], widths=[3, 2, 2], **SMALL))
    with pytest.raises(UserError, match=r"'blocks.0.layer.0.conv1.weight' of shape \(8, 4, 3, 3\)"):
        space.inherit(part, wide)
    with pytest.raises(Exception, match="3 not found"):
        space.inherit({**part, "stage1/depth": 3}, teacher)
