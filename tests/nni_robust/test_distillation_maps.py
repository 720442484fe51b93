"""Taps: published counts and places. Maps and distances: against plain loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.distillation import (
    MapConfig,
    MapSession,
    TapPoint,
    attention_map,
    distances,
    find_taps,
    tap_sides,
)
from nni_robust.errors import UserError
from nni_robust.search_spaces import (
    BaselineSpace,
    InvertedResidualSpace,
    RobNetSpace,
    WideResNetSpace,
)


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda: InvertedResidualSpace(preset="s3"), 28),
        (lambda: InvertedResidualSpace(preset="s5"), 46),
        (lambda: InvertedResidualSpace(preset="s7"), 64),
        (lambda: InvertedResidualSpace(preset="m"), 52),
        (lambda: InvertedResidualSpace(preset="l"), 52),
        (lambda: WideResNetSpace(depths=5), 31),  # WRN-34-10
        (lambda: BaselineSpace(network="resnet-50"), 49),
        (lambda: BaselineSpace(network="resnet-18"), 17),
        (lambda: BaselineSpace(network="resnet-18").freeze({}), 17),
        (lambda: RobNetSpace(init_channels=2, cells=3), 4),
    ],
)
def test_as_many_layers_as_published(make, number: int) -> None:
    """Counts of RNAS-CL's code; RobNet: the stem and each cell."""
    with torch.device("meta"):
        assert len(find_taps(make())) == number


def test_torchvision_names_and_places() -> None:
    with torch.device("meta"):
        network = BaselineSpace(network="resnet-50").freeze({})
    names = [point.name for point in find_taps(network)]
    assert names[:4] == ["bn1:relu", "layer1.0.bn1:relu", "layer1.0.bn2:relu", "layer1.0"]
    assert names[-1] == "layer4.2"
    assert [TapPoint.parse(name).name for name in names] == names


def test_wide_resnet_taps_are_raw_convolutions_without_shortcuts() -> None:
    with torch.device("meta"):
        network = WideResNetSpace(depths=1, widths=2)
    modules = dict(network.named_modules())
    points = find_taps(network)
    assert all(isinstance(modules[p.path], nn.Conv2d) and not p.relu for p in points)
    assert points[0].path == "stem_conv"
    assert not any("shortcut" in p.path for p in points)


def test_any_network_has_its_convolutions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    assert [point.path for point in find_taps(network)] == ["0", "2"]
    with pytest.raises(UserError, match="finds nothing in Linear"):
        find_taps(nn.Linear(2, 2))
    with pytest.raises(UserError, match="did you mean 'convs'"):
        find_taps(network, "conv")
    with pytest.raises(UserError, match="no module '7'"):
        find_taps(network, ["7"])


def test_relu_inside_the_network_is_what_the_tap_sees() -> None:
    """A ResNet's ReLU works in place and is shared; the map is still that of its output."""
    torch.manual_seed(0)
    network = BaselineSpace(network="resnet-18").freeze({}).eval()
    x = torch.rand(2, 3, 16, 16)
    taps = find_taps(network)
    with torch.no_grad(), MapSession(network, taps, MapConfig(size=4)) as session:
        with session.recording():
            network(x)
        found = session.collect()
        stem = network.relu(network.bn1(network.conv1(x)))
        block = network.layer1[0](stem)
    torch.testing.assert_close(found[0], attention_map(stem, MapConfig(size=4)))
    torch.testing.assert_close(found[2], attention_map(block, MapConfig(size=4)))


def test_map_against_its_definition() -> None:
    activation = torch.randn(3, 5, 6, 6)
    found = attention_map(activation, MapConfig(size=4))
    for k in range(3):
        raw = sum(activation[k, c] ** 2 for c in range(5))
        small = F.interpolate(raw[None, None], (4, 4), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[k], (small / small.norm()).flatten())
    whole = attention_map(activation, MapConfig(size=4, norm="batch"))
    assert float(whole.norm()) == pytest.approx(3**0.5)
    sizes = whole.norm(dim=1)
    raw = activation.pow(2).sum(1)[:, None]
    expected = F.interpolate(raw, (4, 4), mode="bilinear").flatten(1).norm(dim=1)
    torch.testing.assert_close(sizes / sizes.sum(), expected / expected.sum())


def test_half_precision_does_not_overflow() -> None:
    found = attention_map(torch.full((1, 640, 2, 2), 300.0, dtype=torch.float16), MapConfig(size=2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 4), 0.5))


def test_distances_equal_the_double_loop() -> None:
    torch.manual_seed(1)
    s = torch.stack([attention_map(torch.randn(7, 3, 5, 5), MapConfig(size=6)) for _ in range(4)])
    t = torch.stack([attention_map(torch.randn(7, 9, 3, 3), MapConfig(size=6)) for _ in range(3)])
    found = distances(s, t)
    for i in range(4):
        for j in range(3):
            loop = sum(float((s[i, b] - t[j, b]).square().sum()) for b in range(7)) / 7
            assert float(found[i, j]) == pytest.approx(loop, abs=1e-5)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 2
    torch.testing.assert_close(distances(s, s).diag(), torch.zeros(4), atol=1e-6, rtol=0)


def test_opposite_maps_are_two_apart() -> None:
    left, right = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    left[..., 0] = 1
    right[..., 3] = 1
    s, t = (attention_map(a, MapConfig(size=4))[None] for a in (left, right))
    assert float(distances(s, t)) == pytest.approx(2)


def test_session_leaves_nothing_behind_and_records_only_when_told() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    x = torch.rand(2, 3, 8, 8)
    with MapSession(network, find_taps(network), MapConfig(size=3)) as session:
        network(x)
        with pytest.raises(ValueError, match="was not recorded"):
            session.collect()
        with session.recording():
            network(x)
            network(x.flip(0))
        network(x)
        maps = session.collect(0)
        assert maps.shape == (2, 2, 9)
        torch.testing.assert_close(session.collect(1), maps.flip(1))
        maps.square().sum().backward()  # the ReLU in place did not spoil the graph
        assert network[0].weight.grad is not None
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    assert after == before


def test_sides_are_those_of_the_maps() -> None:
    network = WideResNetSpace(depths=1, widths=1).eval()
    assert tap_sides(network, find_taps(network), (3, 32, 32)) == [32, 32, 32, 16, 16, 8, 8]


def test_a_layer_that_is_not_used_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.raises(UserError, match="'idle' was not used"):
        tap_sides(Idle(), find_taps(Idle()), (3, 4, 4))
