"""The closed-form cost against published counts and against counting the built network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_robust.cost import Cost, measure_cost
from nni_robust.errors import UserError
from nni_robust.search_spaces import RobNet, RobNetSpace
from nni_robust.search_spaces._robnet_layout import Layout

DATA = yaml.safe_load((Path(__file__).parent / "data" / "robnet_architectures.yaml").read_text())
PICTURES = {
    "cifar10_32": (10, 32),
    "cifar100_32": (100, 32),
    "tinyimagenet_64": (200, 64),
    "imagenet_224": (1000, 224),
}
ROWS = [(name, row) for name, entry in DATA["architectures"].items() for row in entry["measured"]]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_cost_equals_the_published_table(name: str, row: str) -> None:
    entry = DATA["architectures"][name]
    measured = entry["measured"][row]
    imagenet = row.startswith("imagenet")
    classes, side = PICTURES["imagenet_224" if imagenet else row]
    args: dict[str, Any] = {
        "init_channels": 48 if "C48" in row else entry["init_channels"],
        "cells": entry["cells"],
        "stem": "imagenet" if imagenet else "cifar",
    }
    layout = Layout(classes, **args)
    expected = Cost(measured["params"], measured["macs"])
    assert layout.cost(entry["code"], (3, side, side)) == expected
    if "buffers" in measured:
        assert count_buffers(name, **args) == measured["buffers"]


@lru_cache  # they do not depend on the classes and the size of pictures
def count_buffers(name: str, **args: Any) -> int:
    with torch.device("meta"):
        net = RobNet(DATA["architectures"][name]["code"], **args)
    return sum(b.numel() for b in net.buffers())


@pytest.mark.parametrize("name", sorted(DATA["reference_extremes"]))
def test_cost_of_the_extreme_codes(name: str) -> None:
    entry = DATA["reference_extremes"][name]
    assert Layout().cost(entry["code"]) == Cost(entry["params"], entry["macs"])


def test_a_full_size_network_counts_as_much() -> None:
    entry = DATA["reference_extremes"]["all_11"]
    with torch.device("meta"):
        net = RobNet(entry["code"])
    assert measure_cost(net) == Cost(entry["params"], entry["macs"])


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_cost_equals_the_count_of_the_built_network(data: st.DataObject) -> None:
    imagenet = data.draw(st.booleans())
    cells = data.draw(st.integers(3, 5))
    cell_free = data.draw(st.booleans())
    code = st.text("0123", min_size=14, max_size=14)
    codes = data.draw(
        st.lists(code, min_size=cells, max_size=cells) if cell_free else code.map(lambda c: [c])
    )
    channels = data.draw(st.integers(1, 7)) * (2 if imagenet else 1)
    step = 32 if imagenet else 4
    shape = (3, step * data.draw(st.integers(1, 3)), step * data.draw(st.integers(1, 3)))
    with torch.device("meta"):
        net = RobNet(codes, 7, channels, cells, "imagenet" if imagenet else "cifar")
    assert net.layout.cost(codes, shape) == measure_cost(net, shape)


def test_cost_of_a_picture_that_does_not_fit_is_refused() -> None:
    with torch.device("meta"):
        space = RobNetSpace(init_channels=4, cells=3)
    with pytest.raises(UserError, match="30x32"):
        space.cost(space.decode("3" * 14, cells=3), (3, 30, 32))
