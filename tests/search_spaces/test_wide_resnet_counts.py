"""Parameters and multiply-accumulates of every network that is published or was measured.

The numbers were measured on the authors' own code (zhichao-lu/robust-residual-network, commit
8c6d2c2) with forward hooks: its 24 configuration files, as published and as written; the networks
in the tables of paper and README; the topologies in the figures of RC-NAS.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nni_robust.architecture import list_architectures, load_architecture
from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.search_spaces import WideResNet, WideResNetConfig, WideResNetSpace
from nni_robust.search_spaces._wide_resnet_config import ACTIVATIONS, NORMALIZATIONS
from nni_robust.search_spaces._wide_resnet_cost import network_cost

#: What the authors' code takes where a configuration file leaves out the robust block's parameters.
LEGACY: dict[str, Any] = {"scales": 4, "base_width": 64, "cardinality": 8, "se_reduction": 16}


class Net(NamedTuple):
    """Depth x width, and type of block, of each stage; number of batch norms."""

    code: str
    norms: int
    legacy: bool = False


#: Classes, side of the pictures, stride of the stem, parameters, multiply-accumulates.
Row = tuple[int, int, int, int, int]

COUNTS: dict[Net, list[Row]] = {
    # Counted by hand: the published tables do not have these.
    Net("2x1b 2x1b 2x1b", 13): [(10, 32, 1, 175_066, 26_657_408)],  # WRN-16-1
    Net("2x2b 2x2b 2x2b", 13): [(10, 32, 1, 691_674, 101_106_944)],  # WRN-16-2
    Net("4x2b 4x2b 4x2b", 25): [(10, 32, 1, 1_467_610, 214_353_152)],  # WRN-28-2
    Net("5x10b 5x10b 5x10b", 31): [(10, 32, 1, 46_160_474, 6_658_906_368)],  # WRN-34-10
    Net("14x5r 14x7r 7x3r", 351): [  # RobustResNet-A1
        (10, 32, 1, 19_222_738, 5_080_232_192),
        (100, 32, 1, 19_291_948, 5_080_301_312),
        (200, 64, 2, 19_368_848, 5_080_378_112),
        (200, 64, 1, 19_368_848, 20_319_476_480),
    ],
    Net("14x5r 14x7r 7x3r", 211, legacy=True): [  # RobustResNet-A1
        (10, 32, 1, 144_344_330, 39_746_689_536),
        (100, 32, 1, 144_413_540, 39_746_758_656),
    ],
    Net("17x7r 17x9r 8x4r", 421): [  # RobustResNet-A2
        (10, 32, 1, 39_033_982, 10_738_805_376),
        (100, 32, 1, 39_126_232, 10_738_897_536),
        (200, 64, 2, 39_228_732, 10_738_999_936),
        (200, 64, 1, 39_228_732, 42_952_163_968),
    ],
    Net("17x7r 17x9r 8x4r", 253, legacy=True): [  # RobustResNet-A2
        (10, 32, 1, 296_474_882, 84_093_913_600),
        (100, 32, 1, 296_567_132, 84_094_005_760),
    ],
    Net("22x8r 22x11r 11x5r", 551): [  # RobustResNet-A3
        (10, 32, 1, 75_856_698, 19_819_890_176),
        (100, 32, 1, 75_971_988, 19_820_005_376),
        (200, 64, 2, 76_100_088, 19_820_133_376),
        (200, 64, 1, 76_100_088, 79_273_446_400),
    ],
    Net("22x8r 22x11r 11x5r", 331, legacy=True): [  # RobustResNet-A3
        (10, 32, 1, 581_605_962, 156_436_316_672),
        (100, 32, 1, 581_721_252, 156_436_431_872),
    ],
    Net("27x10r 28x14r 13x6r", 681): [  # RobustResNet-A4
        (10, 32, 1, 147_262_458, 39_272_890_880),
        (100, 32, 1, 147_400_788, 39_273_029_120),
        (200, 64, 2, 147_554_488, 39_273_182_720),
        (200, 64, 1, 147_554_488, 157_079_467_520),
    ],
    Net("27x10r 28x14r 13x6r", 409, legacy=True): [  # RobustResNet-A4
        (10, 32, 1, 1_139_611_362, 312_500_457_984),
        (100, 32, 1, 1_139_749_692, 312_500_596_224),
    ],
    Net("14x5b 14x7b 7x3b", 71): [  # WRN-A1
        (10, 32, 1, 18_707_930, 5_076_862_848),
        (100, 32, 1, 18_725_300, 5_076_880_128),
        (200, 64, 2, 18_744_600, 5_076_899_328),
        (200, 64, 1, 18_744_600, 20_307_482_112),
    ],
    Net("17x7b 17x9b 8x4b", 85): [  # WRN-A2
        (10, 32, 1, 38_323_482, 10_836_167_168),
        (100, 32, 1, 38_346_612, 10_836_190_208),
        (200, 64, 2, 38_372_312, 10_836_215_808),
        (200, 64, 1, 38_372_312, 43_344_709_632),
    ],
    Net("22x8b 22x11b 11x5b", 111): [  # WRN-A3
        (10, 32, 1, 75_302_490, 20_215_680_128),
        (100, 32, 1, 75_331_380, 20_215_708_928),
        (200, 64, 2, 75_363_480, 20_215_740_928),
        (200, 64, 1, 75_363_480, 80_862_771_712),
    ],
    Net("27x10b 28x14b 13x6b", 137): [  # WRN-A4
        (10, 32, 1, 147_291_738, 40_381_107_968),
        (100, 32, 1, 147_326_388, 40_381_142_528),
        (200, 64, 2, 147_364_888, 40_381_180_928),
        (200, 64, 1, 147_364_888, 161_524_493_312),
    ],
    Net("4x10b 4x10b 4x10b", 25): [  # WRN-28-10
        (10, 32, 1, 36_479_194, 5_243_328_768),
        (100, 32, 1, 36_536_884, 5_243_386_368),
        (200, 64, 2, 36_600_984, 5_243_450_368),
        (200, 64, 1, 36_600_984, 20_973_417_472),
    ],
    Net("4x10r 4x10r 4x10r", 121): [  # WRN-28-10+RobustResBlock
        (10, 32, 1, 39_588_314, 5_989_239_808),
    ],
    Net("5x12b 5x12b 5x12b", 31): [  # WRN-34-12
        (10, 32, 1, 66_457_818, 9_582_337_536),
        (100, 32, 1, 66_527_028, 9_582_406_656),
        (200, 64, 2, 66_603_928, 9_582_483_456),
        (200, 64, 1, 66_603_928, 38_329_473_024),
    ],
    Net("5x12r 5x12r 5x12r", 151): [  # WRN-34-12+RobustResBlock
        (10, 32, 1, 70_538_874, 10_544_332_800),
    ],
    Net("7x14b 7x14b 7x14b", 43): [  # WRN-46-14
        (10, 32, 1, 128_389_210, 18_585_412_352),
        (100, 32, 1, 128_469_940, 18_585_492_992),
        (200, 64, 2, 128_559_640, 18_585_582_592),
        (200, 64, 1, 128_559_640, 74_341_792_768),
    ],
    Net("7x14r 7x14r 7x14r", 211): [  # WRN-46-14+RobustResBlock
        (10, 32, 1, 132_890_938, 19_585_192_448),
    ],
    Net("11x16b 11x16b 11x16b", 67): [  # WRN-70-16
        (10, 32, 1, 266_796_506, 38_764_210_176),
        (100, 32, 1, 266_888_756, 38_764_302_336),
        (200, 64, 2, 266_991_256, 38_764_404_736),
        (200, 64, 1, 266_991_256, 155_057_004_544),
    ],
    Net("11x16r 11x16r 11x16r", 331): [  # WRN-70-16+RobustResBlock
        (10, 32, 1, 269_940_570, 39_257_300_992),
    ],
    Net("5x10b 5x10b 2x10b", 25): [  # IndepScale-D-5G
        (10, 32, 1, 24_034_394, 5_243_328_768),
    ],
    Net("4x11b 4x13b 4x6b", 25): [  # IndepScale-W-5G
        (10, 32, 1, 24_521_434, 5_702_864_640),
    ],
    Net("6x12b 6x12b 3x12b", 31): [  # IndepScale-D-10G
        (10, 32, 1, 48_538_074, 9_582_337_536),
    ],
    Net("5x13b 5x16b 5x7b", 31): [  # IndepScale-W-10G
        (10, 32, 1, 44_415_386, 10_518_712_704),
    ],
    Net("9x14b 8x14b 4x14b", 43): [  # IndepScale-D-20G
        (10, 32, 1, 90_448_986, 18_585_412_352),
    ],
    Net("7x16b 7x18b 7x8b", 43): [  # IndepScale-W-20G
        (10, 32, 1, 81_664_218, 20_360_647_680),
    ],
    Net("14x16b 13x16b 6x16b", 67): [  # IndepScale-D-40G
        (10, 32, 1, 185_387_482, 38_764_210_176),
    ],
    Net("11x18b 11x21b 11x9b", 67): [  # IndepScale-W-40G
        (10, 32, 1, 169_657_434, 42_706_065_024),
    ],
    Net("12x11b 12x10b 9x8b", 67): [  # RL-20G-clean
        (200, 64, 2, 70_091_928, 14_837_633_024),
        (200, 64, 1, 70_091_928, 59_350_224_896),
    ],
    Net("12x11r 12x10r 9x8r", 331): [  # RL-20G-clean
        (200, 64, 2, 72_029_768, 14_990_013_952),
    ],
    Net("15x13b 15x13b 5x4r", 111): [  # RL-20G-autoattack
        (200, 64, 2, 63_475_032, 23_786_643_456),
    ],
    Net("15x13b 15x13b 5x4b", 71): [  # RL-20G-autoattack
        (200, 64, 2, 63_825_880, 23_789_799_424),
        (200, 64, 1, 63_825_880, 95_159_044_096),
    ],
    Net("15x13r 15x13r 5x4r", 351): [  # RL-20G-autoattack
        (200, 64, 2, 65_315_780, 23_600_513_408),
    ],
    Net("12x10b 12x11b 11x8b", 71): [  # RL-40G-clean
        (200, 64, 2, 83_033_752, 15_449_477_120),
        (200, 64, 1, 83_033_752, 61_797_601_280),
    ],
    Net("12x10r 12x11r 11x8r", 351): [  # RL-40G-clean
        (200, 64, 2, 84_871_704, 15_609_032_704),
    ],
    Net("14x13b 14x13b 8x6r", 137): [  # RL-40G-autoattack
        (200, 64, 2, 74_283_544, 23_117_328_384),
    ],
    Net("14x13b 14x13b 8x6b", 73): [  # RL-40G-autoattack
        (200, 64, 2, 75_093_016, 23_163_300_864),
        (200, 64, 1, 75_093_016, 92_652_973_056),
    ],
    Net("14x13r 14x13r 8x6r", 361): [  # RL-40G-autoattack
        (200, 64, 2, 77_182_128, 23_143_762_688),
    ],
}

ZOO = {
    "wrn-16-1": ("2x1b 2x1b 2x1b", 10),
    "wrn-16-2": ("2x2b 2x2b 2x2b", 10),
    "wrn-28-2": ("4x2b 4x2b 4x2b", 10),
    "wrn-28-10": ("4x10b 4x10b 4x10b", 10),
    "wrn-34-10": ("5x10b 5x10b 5x10b", 10),
    "wrn-34-12": ("5x12b 5x12b 5x12b", 10),
    "wrn-46-14": ("7x14b 7x14b 7x14b", 10),
    "wrn-70-16": ("11x16b 11x16b 11x16b", 10),
    "wrn-a1": ("14x5b 14x7b 7x3b", 10),
    "wrn-a2": ("17x7b 17x9b 8x4b", 10),
    "wrn-a3": ("22x8b 22x11b 11x5b", 10),
    "wrn-a4": ("27x10b 28x14b 13x6b", 10),
    "wrn-a4-robustbench": ("27x10b 28x14b 13x6b", 10),
    "wrn-28-10-tiny-imagenet": ("4x10b 4x10b 4x10b", 200),
    "wrn-34-12-tiny-imagenet": ("5x12b 5x12b 5x12b", 200),
    "wrn-46-14-tiny-imagenet": ("7x14b 7x14b 7x14b", 200),
    "wrn-70-16-tiny-imagenet": ("11x16b 11x16b 11x16b", 200),
    "wrn-a1-tiny-imagenet": ("14x5b 14x7b 7x3b", 200),
    "wrn-a2-tiny-imagenet": ("17x7b 17x9b 8x4b", 200),
    "wrn-a3-tiny-imagenet": ("22x8b 22x11b 11x5b", 200),
    "wrn-a4-tiny-imagenet": ("27x10b 28x14b 13x6b", 200),
    "robustresnet-a1": ("14x5r 14x7r 7x3r", 10),
    "robustresnet-a2": ("17x7r 17x9r 8x4r", 10),
    "robustresnet-a3": ("22x8r 22x11r 11x5r", 10),
    "robustresnet-a4": ("27x10r 28x14r 13x6r", 10),
    "rcnas-20g-clean": ("12x11b 12x10b 9x8b", 200),
    "rcnas-20g-aa": ("15x13b 15x13b 5x4r", 200),
    "rcnas-40g-clean": ("12x10b 12x11b 11x8b", 200),
    "rcnas-40g-aa": ("14x13b 14x13b 8x6r", 200),
}


def config(net: Net, num_classes: int = 10, stem_stride: int = 1) -> WideResNetConfig:
    sample = WideResNetSpace.decode(net.code, search_blocks=True)
    return WideResNetConfig(
        num_classes=num_classes,
        depths=[sample[f"stage{i}/depth"] for i in (1, 2, 3)],
        widths=[sample[f"stage{i}/width"] for i in (1, 2, 3)],
        blocks=[sample[f"stage{i}/block"] for i in (1, 2, 3)],
        stem_stride=stem_stride,
        **(LEGACY if net.legacy else {}),
    )


def count(network: nn.Module, side: int) -> int:
    """Multiply-accumulates by hooks on the layers, for one empty picture on the meta device."""
    total = 0

    def hook(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, torch.Tensor)
        total += layer.weight.numel() * out.shape[2:].numel()

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return total


@pytest.mark.parametrize("net", COUNTS, ids=str)
def test_closed_form(net: Net) -> None:
    for classes, side, stride, params, macs in COUNTS[net]:
        cost = network_cost(config(net, classes, stride), (3, side, side))
        assert (cost.params, cost.macs) == (params, macs)


@pytest.mark.parametrize("net", COUNTS, ids=str)
def test_built_network(net: Net) -> None:
    classes, side, stride, params, macs = COUNTS[net][0]
    with torch.device("meta"):
        network = WideResNet(config(net, classes, stride))
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == params
    assert count(network, side) == macs
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == net.norms


def test_the_zoo_has_these_networks() -> None:
    names = [name for name in list_architectures() if name.startswith(("wrn", "robustr", "rcnas"))]
    assert names == sorted(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    code, classes = ZOO[name]
    rows = next(rows for net, rows in COUNTS.items() if net.code == code and not net.legacy)
    architecture = load_architecture(name)
    assert architecture.num_classes == classes
    params, macs = next(row[3:] for row in rows if row[0] == classes)
    assert (architecture.cost().params, architecture.cost().macs) == (params, macs)
    assert architecture.provenance["kind"] == ("figure" if "rcnas" in name else "published")
    assert architecture.provenance["source"]


def test_weights_are_made_for_real() -> None:
    architecture = load_architecture("wrn-a1")
    network = architecture.build()
    assert not next(network.parameters()).is_meta
    assert measure_cost(network, (3, 8, 8)) == architecture.cost((3, 8, 8))


def triples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any, Any]]:
    return st.tuples(values, values, values)


configs = st.builds(
    WideResNetConfig,
    num_classes=st.integers(1, 20),
    depths=triples(st.integers(1, 3)),
    widths=triples(st.integers(1, 3)),
    blocks=triples(st.sampled_from(["basic", "robust"])),
    activation=triples(st.sampled_from(ACTIVATIONS)),
    normalization=triples(st.sampled_from(NORMALIZATIONS)),
    kernel_size=triples(st.sampled_from([1, 3, 5])),
    strides=triples(st.integers(1, 3)),
    stem_channels=st.integers(1, 20),
    stem_stride=st.integers(1, 2),
    base_channels=triples(st.sampled_from([16, 24, 40])),
    scales=st.integers(1, 5),
    base_width=st.sampled_from([10, 23, 64]),
    cardinality=st.integers(1, 5),
    se_reduction=st.sampled_from([1, 7, 64]),
    preact_fix=st.booleans(),
    normalize=st.sampled_from([None, "cifar10"]),
)


@settings(max_examples=25, deadline=None)
@given(configs, st.integers(17, 40), st.integers(17, 40))  # instance norm needs two pixels
def test_closed_form_is_that_of_any_network(
    config: WideResNetConfig, height: int, width: int
) -> None:
    with torch.device("meta"):
        network = WideResNet(config)
    assert network_cost(config, (3, height, width)) == measure_cost(network, (3, height, width))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8), (3, 0, 8)])
def test_pictures_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="take pictures of shape"):
        network_cost(WideResNetConfig(), shape)
