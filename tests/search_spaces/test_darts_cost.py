"""The closed-form cost against the counts of the authors' networks, and against built ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.strategy import RandomOneShot
from torch import nn

from nni_robust.architecture import load_architecture
from nni_robust.cost import Cost, measure_cost
from nni_robust.errors import UserError
from nni_robust.search_spaces import DartsNetwork, DartsSpace
from nni_robust.search_spaces._darts_genotype import KINDS

# Counted on the code of the Wsr-NAS repository (commit 7736f5d) with torch 2.13: trainable
# parameters without auxiliary head; multiply-accumulates of convolutions and linear layers for one
# picture, with 10 classes at 32x32 or 1000 classes at 224x224. All have 20 cells.
COUNTS = {
    "wsrnet-basic": (45, 4_544_830, 713_671_200),
    "wsrnet-robust": (45, 4_544_830, 713_671_200),
    "wsrnet-m": (45, 4_484_350, 698_188_320),
    "wsrnet-m-1": (45, 4_540_510, 713_118_240),
    "wsrnet-n": (50, 4_721_560, 742_612_800),
    "wsrnet-plus": (46, 4_737_412, 743_614_656),
    "wsrnet-robust-minus": (42, 4_518_664, 713_573_952),
    "racl": (36, 3_571_174, 549_979_776),
    "advrush": (36, 4_158_046, 645_337_728),
    "nasnet-a": (36, 3_830_950, 603_452_448),
    "amoebanet-a": (36, 3_145_078, 488_931_552),
    "darts-v1": (36, 3_169_414, 500_987_520),
    "darts-v2": (36, 3_349_342, 528_359_040),
    "pc-darts": (36, 3_634_678, 556_670_592),
    "pvll-nas": (36, 3_505_726, 554_486_400),
    "wsrnet-basic-imagenet": (74, 13_161_567, 1_520_942_128),
    "racl-imagenet": (64, 11_950_472, 1_347_848_192),
    "advrush-imagenet": (60, 12_179_710, 1_383_406_800),
}


def count(network: nn.Module, shape: tuple[int, ...]) -> Cost:
    """Count with hooks: quicker than `measure_cost`, and independent of it."""
    macs = 0

    def hook(layer: Any, _: Any, out: torch.Tensor) -> None:
        nonlocal macs
        macs += out.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(hook)
    network.eval()(torch.empty(1, *shape, device="meta"))
    return Cost(sum(p.numel() for p in network.parameters()), macs)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_authors_networks(name: str) -> None:
    width, params, macs = COUNTS[name]
    architecture = load_architecture(name)
    assert architecture.space_args["width"] == width
    assert architecture.cost() == Cost(params, macs)
    with torch.device("meta"):
        network = architecture.build()
    assert count(network, architecture.input_shape) == Cost(params, macs)


@pytest.mark.parametrize(
    ("width", "params", "macs"), [(16, 647_578, 105_982_464), (36, 2_959_678, 467_754_624)]
)
def test_counts_of_wsrnet_basic_at_other_widths(width: int, params: int, macs: int) -> None:
    with torch.device("meta"):
        space = DartsSpace(width=width)
    assert space.cost(load_architecture("wsrnet-basic").sample) == Cost(params, macs)


@pytest.mark.parametrize(
    ("name", "millions"), [("darts-v2-imagenet", 4.7), ("pc-darts-imagenet", 5.3)]
)
def test_counts_that_papers_print_for_imagenet(name: str, millions: float) -> None:
    assert round(load_architecture(name).cost().params / 1e6, 1) == millions


def test_a_supernet_has_the_parameters_of_the_hubs() -> None:
    # NNI's DARTS of width 16 with 8 cells under GumbelDARTS: 1,987,418 with 224 of architecture.
    with torch.device("meta"):
        supernet = RandomOneShot().mutate_model(DartsSpace(width=16, cells=8))
    assert sum(p.numel() for p in supernet.parameters()) == 1_987_418 - 224


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_cost_equals_the_count_of_the_built_network(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["darts", "nasnet"]))
    imagenet = data.draw(st.booleans())
    args: dict[str, Any] = {
        "num_classes": data.draw(st.integers(1, 9)),
        "width": data.draw(st.integers(1, 7)) * (2 if imagenet else 1),
        "cells": data.draw(st.integers(3, 7)),
        "stem": "imagenet" if imagenet else "cifar",
    }
    operation = st.sampled_from(KINDS[kind].operations)

    def cell() -> list[tuple[str, int]]:
        count = 2 * KINDS[kind].nodes
        return [(data.draw(operation), data.draw(st.integers(0, 1 + i // 2))) for i in range(count)]

    shape = (3, data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)))
    with torch.device("meta"):
        network = DartsNetwork({"normal": cell(), "reduce": cell()}, **args)
    assert network.layout.cost(network.genotype, shape) == measure_cost(network, shape)


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("imagenet", 224)])
def test_an_auxiliary_head_adds_parameters_but_no_macs(stem: Any, side: int) -> None:
    genotype = DartsSpace.encode(load_architecture("wsrnet-n").sample)
    args: dict[str, Any] = {"num_classes": 7, "width": 4, "cells": 5, "stem": stem}
    with torch.device("meta"):
        plain = DartsNetwork(genotype, **args)
        headed = DartsNetwork(genotype, **args, auxiliary=True)
    cost = headed.layout.cost(headed.genotype, (3, side, side))
    assert cost == measure_cost(headed, (3, side, side))
    without = plain.layout.cost(plain.genotype, (3, side, side))
    head = sum(p.numel() for p in headed.auxiliary_head.parameters())
    assert (cost.params, cost.macs) == (without.params + head, without.macs)


@pytest.mark.parametrize("shape", [(1, 32, 32), (32, 32), (3, 0, 32)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        space = DartsSpace(width=4, cells=3)
    with pytest.raises(UserError, match="pictures of shape"):
        space.cost(load_architecture("racl").sample, shape)
