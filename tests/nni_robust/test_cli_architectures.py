"""``archs`` and ``show``."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from nni_robust.cli import main

# Counted by PyTorch's FlopCounterMode on the authors' code (params, MACs, classes, input).
ROBNETS = {
    "robnet-small": (4359574, 664387200, 10, [3, 32, 32]),
    "robnet-medium": (5614102, 848688768, 10, [3, 32, 32]),
    "robnet-large": (6842710, 1030336128, 10, [3, 32, 32]),
    "robnet-large-v2": (33326666, 5094615040, 10, [3, 32, 32]),
    "robnet-free": (5439790, 780177024, 10, [3, 32, 32]),
    "robnet-large-imagenet": (12756448, 1412137344, 1000, [3, 224, 224]),
}


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def test_archs_lists_the_six_robnets_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[dict[str, Any]] = json.loads(output(capsys, "archs", "robnet*", "--json"))
    counted = {
        e["name"]: (e["params"], e["macs"], e["num_classes"], e["input_shape"]) for e in found
    }
    assert {name: counted.get(name) for name in ROBNETS} == ROBNETS
    assert all(name.startswith("robnet") for name in counted)
    assert {e["space"] for e in found} == {"robnet"}
    assert not any(e["trained"] for e in found)
    assert {e["provenance"] for e in found} <= {"published", "repository", "figure", "found"}


def test_archs_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    header, line = output(capsys, "archs", "robnet-s*").splitlines()
    entry = dict(zip(header.split(), line.split(), strict=True))
    assert entry == {
        "name": "robnet-small",
        "space": "robnet",
        "parameters": "4,359,574",
        "MACs": "664,387,200",
        "classes": "10",
        "input": "3×32×32",
        "provenance": "figure",
    }


def test_archs_without_a_match_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archs", "robnet-smal"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'robnet-small'?" in error
    assert error.count("\n") == 1


def test_show_describes(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "show", "robnet-small")
    for part in ("4,359,574 (10 classes)", "664,387,200", "33123210120232", "1911.10695"):
        assert part in text
    assert "untrained" in text


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads(output(capsys, "show", "robnet-free", "--json"))
    assert about["params"] == 5439790
    assert len(about["code"]) == 20
    assert about["code"][0] == "32332311233031"
    assert about["space_args"] == {"cell_free": True}
    assert about["sample"]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_show_draws(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"cell.{suffix}"
    output(capsys, "show", "robnet-small", "-o", str(path))
    if suffix == "svg":
        root = xml.etree.ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "robnet-smal"], "did you mean 'robnet-small'?"),
        (["show", "missing.yaml"], "no file 'missing.yaml'"),
        (["show", "robnet-small", "-o", "cell.gif"], ".svg or .png"),
        (["show", "robnet-small", "-o", "/no/such/folder/cell.svg"], "cannot be written"),
    ],
)
def test_show_refuses(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
