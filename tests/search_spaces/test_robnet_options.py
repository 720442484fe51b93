"""RobNet beyond its cells: denoising blocks, and the attributes that searches take bounds on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nni
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.space import SimplifiedModelSpace
from nni.nas.strategy import RandomOneShot
from torch import nn

from nni_robust.architecture import load_architecture
from nni_robust.architecture.space import open_space
from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.search_spaces import RobNet, RobNetSpace
from nni_robust.search_spaces._denoising import DENOISERS
from nni_robust.supernet import set_path

SMALL: dict[str, Any] = {"num_classes": 3, "init_channels": 2, "cells": 5}
CODE = "33123210120232"
MIXED = ["dot", None, "median"]
PUBLISHED = yaml.safe_load(
    (Path(__file__).parent / "data" / "robnet_architectures.yaml").read_text()
)["architectures"]


# ---------------------------------------------------------------------------- denoising


def awaken(network: Any) -> None:
    """Give the denoising blocks an effect."""
    for block in network.denoise.values():
        nn.init.normal_(block.norm.weight)


def test_blocks_are_added_after_the_stages_and_change_no_name() -> None:
    plain = RobNet(CODE, **SMALL).state_dict()
    net = RobNet(CODE, denoise="gaussian", **SMALL)
    assert [n for n in net.state_dict() if not n.startswith("denoise.")] == list(plain)
    assert list(net.denoise) == ["0", "2", "4"]  # cells 1 and 3 are reductions
    assert [b.conv.in_channels for b in net.denoise.values()] == [8, 16, 32]
    assert list(RobNet(CODE, denoise=MIXED, **SMALL).denoise) == ["0", "4"]
    twenty = RobNet("0" * 14, 10, 2, 20, denoise="mean")
    assert list(twenty.denoise) == ["5", "12", "19"]


@pytest.mark.parametrize("kind", DENOISERS)
def test_untrained_blocks_change_nothing(kind: str) -> None:
    net = RobNet(CODE, denoise=kind, **SMALL)
    plain = RobNet(CODE, **SMALL)
    plain.load_state_dict(net.state_dict(), strict=False)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x), plain(x))
    awaken(net)
    assert not torch.allclose(net(x), plain(x))


def test_following_cells_get_the_denoised_output() -> None:
    net = RobNet(CODE, denoise="mean", **SMALL).eval()
    awaken(net)
    inputs: list[Any] = []
    outputs: list[Any] = []
    for cell in net.cells:
        cell.register_forward_hook(
            lambda _, given, made: (inputs.append(given), outputs.append(made))[0]
        )
    pooled: list[Any] = []
    net.classifier.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    net(torch.rand(2, 3, 8, 8))
    shown = [net.denoise[str(i)](out) if i in (0, 2, 4) else out for i, out in enumerate(outputs)]
    for index in range(1, 5):
        assert torch.equal(inputs[index][1], shown[index - 1])
        if index > 1:
            assert torch.equal(inputs[index][0], shown[index - 2])
    assert torch.equal(pooled[0], shown[4].mean((2, 3)))


@settings(max_examples=10, deadline=None)
@given(
    denoise=st.lists(st.sampled_from([None, *DENOISERS]), min_size=3, max_size=3),
    cells=st.integers(3, 5),
    channels=st.integers(1, 4),
    imagenet=st.booleans(),
    sides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
)
def test_cost_equals_the_count_of_the_built_network(
    denoise: list[str | None], cells: int, channels: int, imagenet: bool, sides: tuple[int, int]
) -> None:
    stem, step = ("imagenet", 32) if imagenet else ("cifar", 4)
    with torch.device("meta"):
        net = RobNet("12300000000001", 7, 2 * channels, cells, stem, denoise)  # type: ignore[arg-type]
    shape = (3, step * sides[0], step * sides[1])
    assert net.layout.cost([str(net.code)], shape) == measure_cost(net, shape)


def test_all_paths_of_a_supernet_share_the_blocks() -> None:
    torch.manual_seed(0)
    supernet = RandomOneShot().mutate_model(RobNetSpace(denoise=MIXED, **SMALL)).double().eval()
    awaken(supernet)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for code in (CODE, "1" * 14):
        sample = supernet.decode(code, cells=5)
        set_path(supernet, sample)
        network = supernet.freeze(sample)
        torch.testing.assert_close(network(x), supernet(x))
        assert measure_cost(network, (3, 8, 8)) == supernet.cost(sample, (3, 8, 8))
        for name, tensor in network.denoise.state_dict().items():
            assert torch.equal(tensor, supernet.denoise.state_dict()[name])


def test_a_trial_builds_the_blocks() -> None:
    space = RobNetSpace(denoise=MIXED, **SMALL)
    sent = nni.dump(SimplifiedModelSpace.from_model(space).freeze(space.decode(CODE, cells=5)))
    network = nni.load(sent).executable_model()
    assert type(network) is RobNet
    assert list(network.denoise) == ["0", "4"]


@pytest.mark.parametrize("make", [RobNetSpace, lambda **a: RobNet(CODE, **a)])
def test_other_settings_are_refused(make: Any) -> None:
    with pytest.raises(UserError, match="denoise: 'bilateral' is not allowed; allowed: gaussian"):
        make(denoise="bilateral", **SMALL)


def test_the_zoo_has_the_denoised_network() -> None:
    architecture = load_architecture("denoise-robnet-large")
    assert architecture.code() == load_architecture("robnet-large").code()
    # 144, 288 and 576 channels at 32, 16 and 8 pixels; embeddings have half of the channels.
    weights = sum(c * c + 2 * c for c in (144, 288, 576)) + 288**2 + 576**2
    assert architecture.cost().params == 6842710 + weights


# ---------------------------------------------------------------------------- attributes


@pytest.mark.parametrize("name", [n for n in sorted(PUBLISHED) if "stats" in PUBLISHED[n]])
def test_attributes_of_the_published_networks(name: str) -> None:
    code, stats = PUBLISHED[name]["code"], PUBLISHED[name]["stats"]
    cells = len(code) if isinstance(code, list) else 1
    free = cells > 1
    space = open_space("robnet", {"cell_free": free}, 10)
    found = space.attributes(space.decode(code if free else code[0], cells=20, cell_free=free))
    assert found == {
        "convs": stats["convs"] / cells,
        "identities": stats["identities"] / cells,
        "density": pytest.approx(stats["density28"], abs=5e-5),
        "direct_share_edges": pytest.approx(stats["direct_convs"] / (5 * cells)),
        "direct_share_convs": pytest.approx(stats["direct_convs"] / stats["convs"]),
    }


def test_attributes_without_any_operation() -> None:
    space = open_space("robnet", {"cells": 3}, 10)
    found = space.attributes(space.decode("0" * 14, cells=3))
    assert found == dict.fromkeys(found, 0.0)
    assert all(type(value) is float for value in found.values())


def test_attributes_of_equal_cells_are_those_of_the_shared_cell() -> None:
    shared = open_space("robnet", {"cells": 4}, 10)
    free = open_space("robnet", {"cells": 4, "cell_free": True}, 10)
    assert shared.attributes(shared.decode(CODE, cells=4)) == free.attributes(
        free.decode([CODE] * 4, cells=4, cell_free=True)
    )
