"""The zoo: names, published counts, provenance."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import nni_robust
from nni_robust.architecture import list_architectures, load_architecture
from nni_robust.cost import Cost
from nni_robust.errors import UserError

# Measured with the authors' model code: 10 classes, 100 classes at 32x32; ImageNet at 224x224.
COUNTS = {
    "robnet-small": [(10, 4359574, 664387200), (100, 4411504, 664439040)],
    "robnet-medium": [(10, 5614102, 848688768), (100, 5666032, 848740608)],
    "robnet-large": [(10, 6842710, 1030336128), (100, 6894640, 1030387968)],
    "robnet-large-v2": [(10, 33326666, 5094615040), (100, 33418916, 5094707200)],
    "robnet-free": [(10, 5439790, 780177024), (100, 5491720, 780228864)],
    "robnet-large-imagenet": [(1000, 12756448, 1412137344)],
}


def test_names_are_sorted_and_match_patterns() -> None:
    names = list_architectures("robnet*")
    assert names == sorted(names)
    assert set(names) == set(COUNTS)
    assert list_architectures("robnet*imagenet") == ["robnet-large-imagenet"]
    assert list_architectures("nothing*") == []
    assert set(COUNTS) <= set(list_architectures())
    assert nni_robust.list_architectures is list_architectures


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_cost_is_the_published_one(name: str) -> None:
    architecture = load_architecture(name)
    classes, params, macs = COUNTS[name][0]
    assert architecture.num_classes == classes
    assert architecture.cost() == Cost(params, macs)
    for classes, params, macs in COUNTS[name]:
        assert architecture.cost(architecture.input_shape, classes) == Cost(params, macs)


@pytest.mark.parametrize("name", list_architectures())
def test_every_entry_builds_what_its_cost_says_and_tells_its_source(name: str) -> None:
    architecture = load_architecture(name)
    with torch.device("meta"):
        network = architecture.build()
    assert sum(p.numel() for p in network.parameters()) == architecture.cost().params
    assert architecture.provenance["kind"] in ("published", "repository", "figure")
    assert architecture.provenance["source"]
    assert not architecture.trained
    assert architecture.name == name


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown architecture 'robnet-smal'; did you mean"):
        load_architecture("robnet-smal")


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys, nni_robust; nni_robust.list_architectures('robnet*');"
        "sys.exit('torch' in sys.modules or 'nni' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
