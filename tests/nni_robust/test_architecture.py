"""Architectures as plain data: round trips, weights, bad files, third-party spaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nni.mutable import Categorical, Numerical, ensure_frozen
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from safetensors.torch import save_model
from torch import nn

from nni_robust.architecture import Architecture, load_architecture
from nni_robust.cost import Cost
from nni_robust.errors import UserError
from nni_robust.registry import search_spaces

ARGS = {"init_channels": 4, "cells": 3}
CODE = "33123210120232"


@pytest.fixture
def small() -> Architecture:
    sample = search_spaces.get("robnet").decode(CODE, **ARGS)
    return Architecture("mine", "robnet", ARGS, sample, num_classes=3, input_shape=(3, 8, 8))


class ThirdPartySpace(ModelSpace):
    """A space that has nothing but what NNI asks for, and `num_classes`."""

    def __init__(self, num_classes: int = 10, widths: tuple[int, ...] = (2, 4)) -> None:
        super().__init__()
        if not widths:
            raise ValueError("no widths")
        width = ensure_frozen(self.add_mutable(Categorical(list(widths), label="width")))
        self.add_mutable(Numerical(0.0, 1.0, label="slope"))
        self.conv = nn.Conv2d(3, width, 1, bias=False)
        self.op = LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, label="op")
        self.classifier = nn.Linear(width, num_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.op(self.conv(x)).mean((2, 3)))
        return out


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(search_spaces._own, "theirs", ThirdPartySpace)


# ---------------------------------------------------------------------------- plain data


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_file_round_trip(small: Architecture, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    small.save(path)
    assert load_architecture(path) == small
    assert load_architecture(str(path)) == small
    assert Architecture.from_dict(json.loads(json.dumps(small.to_dict()))) == small


def test_a_code_may_stand_for_the_sample(small: Architecture) -> None:
    value = small.to_dict()
    del value["sample"]
    assert Architecture.from_dict({**value, "code": CODE}) == small
    assert small.code() == CODE
    with pytest.raises(UserError, match="either sample or code"):
        Architecture.from_dict(value)


def test_numbers_and_labels_of_nni_become_plain(tmp_path: Path) -> None:
    from nni.mutable.utils import label

    sample = {label(["model", "width"]): np.int64(4), "kernels": (1, np.float32(0.5))}
    architecture = Architecture("a", "theirs", {}, sample)
    assert architecture.sample == {"model/width": 4, "kernels": [1, 0.5]}
    assert [type(key) for key in architecture.sample] == [str, str]
    architecture.save(tmp_path / "a.yaml")  # YAML's safe writer takes plain types only


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "nni-robust/architecture/2"}, "format: 'nni-robust/architecture/2'"),
        ({"smaple": {}}, "unknown key 'smaple'; did you mean 'sample'"),
        ({"name": ""}, "name: '' is not allowed"),
        ({"name": None}, "name: None is not allowed"),
        ({"space": "robnett"}, "unknown search space 'robnett'; did you mean 'robnet'"),
        ({"space_args": {"chanels": 4}}, "space 'robnet' has no argument 'chanels'"),
        ({"space_args": {"cells": 1}}, "cells: 1 is not allowed"),
        ({"space_args": {"cells": "3"}}, "cells: '3' is not allowed"),
        ({"space_args": []}, "space_args: \\[\\] is not allowed; a mapping is"),
        ({"sample": {"cell/0-2": "conv"}}, "no value for 'cell/1-2'"),
        ({"num_classes": 0}, "num_classes: 0 is not allowed"),
        ({"num_classes": True}, "num_classes: True is not allowed"),
        ({"input_shape": [3, 8]}, "input_shape: \\[3, 8\\] is not allowed"),
        ({"provenance": {"kind": "guess"}}, "kind: 'guess' is not allowed; allowed: published"),
        ({"provenance": {"kind": "found", "by": "me"}}, "provenance.by: 'me'"),
        ({"weights": 3}, "weights: 3 is not allowed; a path is"),
    ],
)
def test_bad_descriptions_are_refused(
    small: Architecture, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Architecture.from_dict({**small.to_dict(), **change})


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("cell/0-2", "pool", "cell/0-2: 'pool' is not allowed; allowed: none, conv, skip"),
        ("cell/0-2", ["conv"], r"cell/0-2: \['conv'\] is not allowed"),
        ("cell/0-1", "conv", "'cell/0-1', which is no choice of this space; did you mean"),
    ],
)
def test_bad_samples_are_refused(small: Architecture, label: str, value: Any, message: str) -> None:
    sample = {**small.sample, label: value}
    with pytest.raises(UserError, match=message):
        Architecture.from_dict({**small.to_dict(), "sample": sample})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "damaged"),
        ("a.json", "[]", "format"),
        ("a.yaml", "format: [", "not valid YAML"),
        ("a.yaml", "- 1", "mapping"),
        ("a.yaml", "format: nni-robust/architecture/1", "name is missing"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_architecture(tmp_path / name)


def test_missing_files_and_other_suffixes_are_refused(small: Architecture, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_architecture(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"there is no file or folder '.*weights.pt'"):
        load_architecture(tmp_path / "weights.pt")
    (tmp_path / "weights.pt").touch()
    with pytest.raises(UserError, match=r"weights.pt' is no architecture file.*--weights"):
        load_architecture(tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"there is no file or folder 'runs/robnet-small'$"):
        load_architecture("runs/robnet-small")
    with pytest.raises(UserError, match="unknown architecture 'robnet-smal'; did you mean"):
        load_architecture("robnet-smal")
    with pytest.raises(UserError, match=r"saved as \.yaml"):
        small.save(tmp_path / "mine.toml")


# ---------------------------------------------------------------------------- networks


def test_build_gives_a_plain_network(small: Architecture) -> None:
    network = small.build()
    assert network.training
    assert not [m for m in network.modules() if type(m).__module__.startswith("nni.")]
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 3)
    assert small.build(num_classes=7)(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    params = sum(p.numel() for p in network.parameters())
    assert small.cost().params == params
    # Four more outputs of a classifier with 16 * 4 inputs.
    assert small.cost(num_classes=7) == Cost(params + 4 * 65, small.cost().macs + 4 * 64)


def test_build_refuses_a_sample_outside_the_space(small: Architecture) -> None:
    wrong = Architecture("wrong", "robnet", ARGS, {**small.sample, "cell/0-2": "pool"})
    for use in (wrong.build, wrong.cost, wrong.check):
        with pytest.raises(UserError, match="architecture 'wrong': cell/0-2: 'pool'"):
            use()


def test_cost_allocates_no_weights() -> None:
    huge = {"init_channels": 4096, "cells": 30}
    sample = search_spaces.get("robnet").decode("3" * 14, **huge)
    assert Architecture("huge", "robnet", huge, sample).cost().params > 10**11


def test_graphs_come_from_the_space(small: Architecture) -> None:
    assert [g.title for g in small.graphs()] == ["cells 0-2 (reductions: 1 and 2)"]


def test_trained_weights_travel_with_the_file(small: Architecture, tmp_path: Path) -> None:
    network: Any = small.build()
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(network, str(folder / "best.safetensors"))
    trained = Architecture(
        "mine", "robnet", ARGS, small.sample, num_classes=3, weights=folder / "best.safetensors"
    )
    trained.save(folder / "best.yaml")
    assert "weights: best.safetensors" in (folder / "best.yaml").read_text()
    moved = folder.rename(tmp_path / "moved")

    loaded = load_architecture(moved / "best.yaml")
    assert loaded.trained
    again = loaded.build()
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    fresh: Any = loaded.build(pretrained=False)
    assert not torch.equal(fresh.stem[0].weight, network.stem[0].weight)
    with pytest.raises(UserError, match="num_classes: 5 is not allowed with its trained weights"):
        loaded.build(5)
    assert loaded.build(5, pretrained=False)(torch.rand(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other network"])
def test_bad_weights_are_refused(small: Architecture, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    if damage == "other network":
        save_model(nn.Linear(2, 2), str(path))
    elif damage == "truncated":
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    broken = Architecture("a", "robnet", ARGS, small.sample, num_classes=3, weights=path)
    with pytest.raises(UserError, match=r"w\.safetensors"):
        broken.build()


# ---------------------------------------------------------------------------- third parties


@pytest.mark.usefixtures("third_party")
def test_a_space_with_only_what_nni_asks_for_takes_part() -> None:
    sample = {"width": 4, "slope": 0.5, "op": "tanh"}
    architecture = Architecture.from_dict(
        {"format": "nni-robust/architecture/1", "name": "a", "space": "theirs", "sample": sample}
    )
    assert isinstance(architecture.build().op, nn.Tanh)
    assert architecture.cost((3, 5, 5), 6) == Cost(3 * 4 + 4 * 6, 3 * 4 * 25 + 4 * 6)
    assert architecture.graphs() == []
    assert architecture.code() is None


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": {"width": 3, "slope": 0.5, "op": "tanh"}}, "width: 3 is not allowed; allowed"),
        ({"sample": {"width": 2, "slope": 2.0, "op": "tanh"}}, "slope: 2.0 is not allowed"),
        ({"space_args": {"widths": []}}, "space 'theirs' refuses the arguments"),
        ({"sample": None}, "sample: None is not allowed"),
    ],
)
def test_their_refusals_become_sentences(change: dict[str, Any], message: str) -> None:
    value = {
        "format": "nni-robust/architecture/1",
        "name": "a",
        "space": "theirs",
        "sample": {"width": 4, "slope": 0.5, "op": "tanh"},
    }
    with pytest.raises(UserError, match=message):
        Architecture.from_dict({**value, **change})


@pytest.mark.usefixtures("third_party")
def test_a_space_without_codes_says_so() -> None:
    value = {"format": "nni-robust/architecture/1", "name": "a", "space": "theirs", "code": "3"}
    with pytest.raises(UserError, match="space 'theirs' has no codes; give a sample"):
        Architecture.from_dict(value)
