"""Blocks of pictures that fit the CPU's cache: the same attack, fewer pictures at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nni_robust.attacks import _fold, attack, undisturbed
from nni_robust.attacks._fold import block_size
from nni_robust.bench._networks import ResNet18


class Counted(nn.Module):
    """A small network that remembers with how many pictures it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 5)
        self.__dict__["calls"] = []

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.calls.append(len(x))
        out: Tensor = self.last(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))
        return out


def counted() -> Counted:
    torch.manual_seed(0)
    return Counted().double().eval()


def pictures(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, 8, 8, dtype=torch.float64), torch.arange(n) % 5


@pytest.fixture
def three_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fold, "_CACHED", 3 * 4 * 8 * 8)
    torch.set_num_threads(1)


ATTACKS: list[dict[str, Any]] = [
    {"name": "pgd5"},
    {"name": "pgd5", "early_stop": True},
    {"name": "mi-fgsm3", "early_stop": True},
    {"name": "cw3"},
]


@pytest.mark.usefixtures("three_at_a_time")
@pytest.mark.parametrize("spec", ATTACKS, ids=str)
def test_finds_the_same(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dict(spec)
    made = attack(spec.pop("name"), eps=0.1, fold=True, **spec)
    (x, y), net = pictures(10), counted()
    found = made(net, x, y, seed=0)
    assert max(net.calls) == 3
    monkeypatch.setattr(_fold, "_CACHED", 1 << 30)
    net = counted()
    whole = made(net, x, y, seed=0)
    assert max(net.calls) == 10
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    assert (found - x).abs().max() > 0.01


@pytest.mark.usefixtures("three_at_a_time")
@pytest.mark.parametrize("settings", [{"fold": False}, {"bn_mode": "train"}])
def test_only_where_the_network_was_watched(settings: dict[str, Any]) -> None:
    """With the statistics of the batch, a part of it would be another network."""
    (x, y), net = pictures(10), counted()
    attack("pgd2", eps=0.1, **settings)(net, x, y, seed=0)
    assert set(net.calls) == {10}


def size(net: nn.Module, pictures: int, **settings: Any) -> int | None:
    with undisturbed(net.eval(), fold=torch.rand(2, 3, 32, 32)):
        return block_size(net, pictures, **settings)


def test_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """At width w, ResNet-18 has maps of w/16 times 30 KiB on average, (w/16)² · 0.7 M weights."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    narrow, wide = ResNet18(16), ResNet18(64)
    assert size(narrow, 256) == 29
    assert size(narrow, 29) is None
    assert size(wide, 256) is None  # its weights would be read too often
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert size(narrow, 256) in (58, 59)
    assert block_size(ResNet18(16), 256) is None  # nobody watched it


@given(st.integers(1, 600))
def test_a_compiler_gets_one_size(n: int) -> None:
    block, usual = size(NARROW, n, even=True), size(NARROW, 10**6)
    assert usual is not None
    if n <= usual:
        assert block is None
    elif block is None:
        assert not any(n % size == 0 for size in range(math.ceil(usual / 1.5), usual + 1))
    else:
        assert n % block == 0
        assert usual / 1.51 < block < 2 * usual


NARROW = ResNet18(16)
