"""Inverted residuals: counts of RNAS-CL's networks, blocks, codes, NNI, slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.mutable import SampleValidationError
from nni.nas.space import SimplifiedModelSpace, model_context
from torch import nn

from nni_robust.architecture import Architecture, list_architectures, load_architecture
from nni_robust.cost import Cost, measure_cost
from nni_robust.errors import UserError
from nni_robust.registry import search_spaces
from nni_robust.sampling import draw
from nni_robust.search_spaces import InvertedResidualNet, InvertedResidualSpace
from nni_robust.supernet import build_supernet

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "preset": None,
    "stages": [
        {"blocks": 2, "widths": [4, 2]},
        {"blocks": 3, "widths": [3, 6, 5], "stride": 2, "expansion": 3},
        {"blocks": 1, "widths": [4], "expansion": 1},
    ],
    "stem_channels": 4,
    "stem_stride": 1,
}


def make(**changes: Any) -> InvertedResidualSpace:
    torch.manual_seed(0)
    return InvertedResidualSpace(**{**SMALL, **changes})


def random_sample(space: InvertedResidualSpace, seed: int) -> dict[str, Any]:
    choices: Any = space
    sample: dict[str, Any] = draw(choices.simplify(), np.random.RandomState(seed))
    return sample


def lively(network: nn.Module) -> nn.Module:
    """Norms as after a training, so that no mask or shortcut can hide behind zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, torch.Tensor)
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


# Computed for the spec from the released template: M parameters, M multiply-accumulates at 32x32.
TABLE = [
    ("s3", "16x3 32x3 64x3", 0.183, 7.9),
    ("s3", "12x3 20x3 52x3", 0.113, 4.7),
    ("s3", "16x3 20x3 52x3", 0.118, 5.9),
    ("s5", "16x5 32x5 64x5", 0.333, 13.4),
    ("s5", "16x5 20x5 52x5", 0.215, 9.8),
    ("s7", "16x7 32x7 64x7", 0.483, 18.9),
    ("s7", "16x7 20x7 52x4,56x2,52", 0.323, 13.8),
    ("s18", "16x15 32x18 64x18", 1.293, 46.0),
    ("m", "80x9 160x7 128", 3.033, 317),
    ("m", "76x9 148x7 116", 2.640, 281),
    ("l", "160x9 320x7 256", 11.76, 1237),
    ("l", "156x9 308x7 244", 10.97, 1164),
]


@pytest.mark.parametrize(("preset", "code", "params", "macs"), TABLE)
def test_counts_of_the_templates(preset: str, code: str, params: float, macs: float) -> None:
    with torch.device("meta"):
        space = InvertedResidualSpace(preset=preset)
        network = space.freeze(space.decode(code, preset=preset))
    cost = space.cost(space.decode(code, preset=preset))
    assert cost == measure_cost(network)
    assert cost.params / 1e6 == pytest.approx(params, rel=0.005)
    assert cost.macs / 1e6 == pytest.approx(macs, rel=0.005, abs=0.051)


@pytest.mark.parametrize(("which", "params"), [("max", 6.20), ("min", 2.53)])
def test_counts_of_the_imagenet_template(which: str, params: float) -> None:
    architecture = load_architecture(f"rnas-cl-imagenet-100-{which}")
    with torch.device("meta"):
        network = architecture.build()
    assert architecture.cost() == measure_cost(network, (3, 224, 224))
    assert architecture.cost().params / 1e6 == pytest.approx(params, rel=0.005)


#: Parameters and MACs, exactly; the searched networks are those of the paper's 0.32 M.
ZOO = {
    "rnas-cl-imagenet-100-max": (6201616, 496093040),
    "rnas-cl-imagenet-100-min": (2524752, 160844368),
    "rnas-cl-l-max": (11761514, 1236992512),
    "rnas-cl-l-min": (10973558, 1163693320),
    "rnas-cl-m-max": (3033210, 317065472),
    "rnas-cl-m-min": (2640390, 280593416),
    "rnas-cl-s3-max": (183194, 7874176),
    "rnas-cl-s3-min": (112790, 4743304),
    "rnas-cl-s5": (215138, 9752968),
    "rnas-cl-s5-max": (333050, 13366912),
    "rnas-cl-s5-min": (206366, 7840648),
    "rnas-cl-s7": (323162, 13820296),
    "rnas-cl-s7-max": (482906, 18859648),
    "rnas-cl-s7-min": (299942, 10937992),
}


def test_zoo() -> None:
    assert set(list_architectures("rnas-cl*")) == set(ZOO)
    for name, (params, macs) in ZOO.items():
        assert load_architecture(name).cost() == Cost(params, macs)


@pytest.mark.parametrize(
    ("preset", "taps"),
    [
        *[("s3", 28), ("s5", 46), ("s7", 64), ("s7w", 64), ("s9", 82), ("s18", 154)],
        *[("m", 52), ("l", 52), ("imagenet-100", 56)],
    ],
)
def test_tap_points(preset: str, taps: int) -> None:
    with torch.device("meta"):
        space = InvertedResidualSpace(preset=preset)
        narrow = {label: values[-1] for label, values in space.config.choices().items()}
        network = space.freeze(narrow)
        relaxed = space.relaxed().network
    paths = space.tap_points()
    assert len(paths) == len(set(paths)) == taps
    assert network.tap_points() == relaxed.tap_points() == paths
    assert paths[:3] == [
        "stem",
        "stages.0.0.dw" if preset == "imagenet-100" else "stages.0.0.pw",
        paths[2],
    ]
    for path in paths:
        network.get_submodule(path)
        relaxed.get_submodule(path)


def test_taps_are_left_alone_and_have_gradients() -> None:
    network = make().train()
    taps: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    fired: list[str] = []

    def watch(path: str) -> None:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            taps[path] = (output, output.detach().clone())
            fired.append(path)

        network.get_submodule(path).register_forward_hook(hook)

    for path in network.tap_points():
        watch(path)
    network(torch.rand(2, 3, 8, 8))
    assert fired == network.tap_points()
    for output, copy in taps.values():
        assert torch.equal(output, copy)
    sum(output.pow(2).sum() for output, _ in taps.values()).backward()  # type: ignore[union-attr]
    assert taps["stages.1.0.pwl"][0].min() < 0  # no activation behind the last convolution


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 2**31 - 1), st.integers(1, 12), st.sampled_from(["input", "full"]), st.booleans()
)
def test_networks_are_the_same_by_every_door(seed: int, side: int, mid: str, head: bool) -> None:
    options: dict[str, Any] = {"mid": mid, "head_channels": 5 if head else None}
    space = make(**options)
    sample = random_sample(space, seed)
    frozen = space.freeze(sample)
    with model_context(sample):
        in_trial: Any = InvertedResidualSpace(**{**SMALL, **options})
    assert type(frozen) is type(in_trial) is InvertedResidualNet
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (frozen, in_trial)]
    assert shapes[0] == shapes[1]
    assert measure_cost(frozen, (3, side, side)) == space.cost(sample, (3, side, side))


def test_a_block_by_hand() -> None:
    """Shortcut where the largest widths agree: cut off, or filled up with zeros."""
    space = lively(make())
    assert isinstance(space, InvertedResidualSpace)
    sample = space.decode("2,4 6,3,5 4", **SMALL)
    network = lively(space.freeze(sample))
    first: Any = network.get_submodule("stages.0.0")
    second: Any = network.get_submodule("stages.0.1")
    x = torch.rand(2, 4, 5, 5)
    body = first.pwl(first.dw(first.pw(x)))
    torch.testing.assert_close(first(x), body + x[:, :2])  # 4 channels in, 2 out
    y = torch.rand(2, 2, 5, 5)
    out = second.pwl(second.dw(second.pw(y)))
    expected = out + torch.cat([y, torch.zeros(2, 2, 5, 5)], dim=1)
    torch.testing.assert_close(second(y), expected)
    reduction = network.get_submodule("stages.1.0")
    assert not reduction.shortcut
    last = network.get_submodule("stages.2.0")
    assert last.pw is None
    assert not last.shortcut  # 6 channels at most before, 4 behind


def test_weights_at_the_start() -> None:
    torch.manual_seed(0)
    network = InvertedResidualSpace(preset="s3")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.003, 1e-5)}
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.bias is not None and not conv.bias.any() for conv in convs)
    conv: Any = network.get_submodule("stages.2.1.pw.conv")
    assert conv.weight.std().item() == pytest.approx((2 / (6 * 64)) ** 0.5, rel=0.05)
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_zero_gamma_starts_at_the_identity() -> None:
    network = make(zero_gamma=True).eval()
    block = network.get_submodule("stages.0.1")
    x = torch.rand(1, 4, 4, 4)
    assert torch.equal(block(x), x)
    assert not torch.equal(make().eval().get_submodule("stages.0.1")(x), x)


@pytest.mark.parametrize(
    ("preset", "side", "stride"), [("s3", 8, 1), ("s3", 8, None), ("s3", 64, None)]
)
def test_sizes_of_pictures(preset: str, side: int, stride: int | None) -> None:
    network = InvertedResidualSpace(preset=preset, stem_stride=stride)
    assert network(torch.rand(2, 3, side, side)).shape == (2, 10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(["input", "full"]), st.booleans())
def test_inherited_networks_compute_as_the_masked_one(seed: int, mid: str, head: bool) -> None:
    from nni_robust.relaxation import one_hot

    space = make(mid=mid, head_channels=5 if head else None, normalize="cifar10")
    relaxed = space.relaxed()
    lively(relaxed.network)
    sample = random_sample(space, seed)
    relaxed.set_weights(one_hot(relaxed.choices, sample))
    x = torch.rand(2, 3, 8, 8)
    sliced = space.inherit(sample, relaxed.network)
    torch.testing.assert_close(sliced(x), relaxed.network(x), atol=1e-6, rtol=1e-6)
    # The last layer starts small; features must not agree for that reason only.
    seen: list[torch.Tensor] = []
    for network in (sliced, relaxed.network):
        network.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        network(x)
    narrow, wide = seen
    assert narrow.abs().mean() > 0.01
    torch.testing.assert_close(wide[:, : narrow.shape[1]], narrow, atol=1e-6, rtol=1e-6)
    assert not wide[:, narrow.shape[1] :].any()
    # Slices are copies.
    sliced.fc.weight.data.zero_()
    assert relaxed.network.fc.weight.any()


def test_inherit_from_narrower_and_foreign_networks() -> None:
    space = make()
    wide, narrow = space.decode("4x2 6x3 4", **SMALL), space.decode("2x2 3x3 4", **SMALL)
    teacher = space.freeze(wide)
    student = space.inherit(narrow, teacher)
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    assert space.inherit(wide, teacher).training
    with pytest.raises(UserError, match="network to inherit from does not fit: stages"):
        space.inherit(wide, space.freeze(narrow))
    with pytest.raises(UserError, match="of another template"):
        space.inherit(narrow, nn.Linear(2, 2))
    with pytest.raises(SampleValidationError):
        space.inherit({**narrow, "stage1/block1/width": 3}, teacher)


def test_labels_and_values() -> None:
    space: Any = make()
    assert {label: choice.values for label, choice in space.simplify().items()} == {
        "stage1/block1/width": [4, 2],
        "stage1/block2/width": [4, 2],
        "stage2/block1/width": [6, 5, 3],
        "stage2/block2/width": [6, 5, 3],
        "stage2/block3/width": [6, 5, 3],
        "stage3/block1/width": [4],
    }
    wide = InvertedResidualSpace(preset="s7w").config.stages
    assert [stage.widths for stage in wide] == [
        (16, 12, 8, 4),
        (32, 24, 16, 8),
        (64, 56, 48, 40, 32, 24, 16),
    ]
    assert all(4 * stage.widths[-1] == stage.widths[0] for stage in wide)


def test_undecided_space_computes_as_the_widest() -> None:
    space = lively(make())
    assert isinstance(space, InvertedResidualSpace)
    widest = space.freeze(space.decode("4x2 6x3 4", **SMALL))
    assert not widest.training
    widest.load_state_dict(space.state_dict())
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(widest(x), space(x))


@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=9), min_size=1, max_size=4))
def test_codes_round_trip(stages: list[list[int]]) -> None:
    code = " ".join(",".join(map(str, widths)) for widths in stages)
    own = [{"blocks": len(widths), "widths": [1]} for widths in stages]
    sample = InvertedResidualSpace.decode(code, preset=None, stages=own)
    assert list(sample.values()) == [width for widths in stages for width in widths]
    short = InvertedResidualSpace.encode({"lr": 1, **dict(reversed(sample.items()))})
    assert InvertedResidualSpace.decode(short, preset=None, stages=own) == sample


def test_codes_are_short_and_checked() -> None:
    code = "16x7 20x7 52x4,56x2,52"
    sample = InvertedResidualSpace.decode(code, preset="s7")
    assert InvertedResidualSpace.encode(sample) == code
    for wrong in ("16x7 20x7", "16x7 20x7 52x6", "16x7 20x7 52x-7", "", 5, "16 x7 20x7 52x7"):
        with pytest.raises(UserError, match=r"inverted-residual code: .* is not allowed"):
            InvertedResidualSpace.decode(wrong)  # type: ignore[arg-type]
    del sample["stage2/block3/width"]
    with pytest.raises(UserError, match="no value for 'stage2/block3/width'"):
        InvertedResidualSpace.encode(sample)
    with pytest.raises(UserError, match="no value for 'stage2/block3/width'"):
        InvertedResidualSpace().cost(sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "s6", "stages": None}, "preset: 's6' is not allowed; did you mean 's"),
        ({"preset": "s7"}, "preset: 's7' is not allowed with stages"),
        ({"stages": None}, "preset: None is not allowed without stages"),
        ({"stages": [{"blocks": 1}]}, r"stages\[0\].widths is missing"),
        ({"stages": [{"blocks": 1, "width": [2]}]}, "unknown key 'width'; did you mean 'widths'"),
        ({"stages": [{"blocks": 0, "widths": [2]}]}, r"stages\[0\].blocks: 0 is not allowed"),
        ({"stages": [{"blocks": 1, "widths": [2, 2]}]}, "a list of different positive integers"),
        ({"stages": [{"blocks": 1, "widths": [2, 0]}]}, "widths: 0 is not allowed"),
        ({"stages": [3]}, "a mapping with blocks and widths is"),
        ({"stages": []}, r"stages: \[\] is not allowed"),
        ({"mid": "inherit"}, "mid: 'inherit' is not allowed"),
        ({"bn_momentum": 2}, "bn_momentum: 2 is not allowed"),
        ({"zero_gamma": 1}, "zero_gamma: 1 is not allowed; true or false is"),
        ({"num_classes": 0}, "num_classes: 0 is not allowed"),
        ({"normalize": "imagenet"}, "normalize: 'imagenet' is not allowed"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)
    with pytest.raises(UserError, match="shape"):
        make().cost(random_sample(make(), 0), (1, 8, 8))


def test_attributes() -> None:
    space = InvertedResidualSpace(preset="s7")
    searched = space.attributes(space.decode("16x7 20x7 52x4,56x2,52"))
    ratio = (7 * 1 + 7 * 20 / 32 + 5 * 52 / 64 + 2 * 56 / 64) / 21
    assert searched["width_ratio"] == pytest.approx(ratio)
    assert searched["narrowest"] == pytest.approx(12 / 21)
    assert searched["widest"] == pytest.approx(7 / 21)


def test_architecture_file_and_drawing(tmp_path: Path) -> None:
    assert search_spaces.get("inverted-residual") is InvertedResidualSpace
    space_args = {k: v for k, v in SMALL.items() if k != "num_classes"}
    sample = random_sample(make(), 3)
    architecture = Architecture(
        name="small", space="inverted-residual", space_args=space_args, sample=sample
    )
    architecture.save(tmp_path / "small.yaml")
    again = load_architecture(tmp_path / "small.yaml")
    assert again == architecture
    assert again.cost((3, 8, 8)) == measure_cost(again.build(), (3, 8, 8))
    assert again.code() == InvertedResidualSpace.encode(sample)
    graph = load_architecture("rnas-cl-s3-min").graphs()[1]
    assert graph.title == "stage 2: 3 blocks, expansion 6, stride 2; block: channels"
    assert graph.nodes == ("in", "1: 20", "2: 20", "3: 20")
    assert [edge for edge in graph.edges if edge[2] == "identity"] == [
        ("1: 20", "2: 20", "identity"),
        ("2: 20", "3: 20", "identity"),
    ]


def test_trials_and_one_shot_strategies_of_nni() -> None:
    space = make()
    sample = random_sample(space, 5)
    model = SimplifiedModelSpace.from_model(space).freeze(sample)
    network = model.executable_model()
    assert type(network) is InvertedResidualNet
    assert measure_cost(network, (3, 8, 8)) == space.cost(sample, (3, 8, 8))
    with pytest.raises(UserError, match=r"cannot become a supernet: .*relaxation"):
        build_supernet(make())
    with pytest.raises(SampleValidationError):
        space.freeze({**sample, "stage2/block1/width": 4})
