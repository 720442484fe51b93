"""Common corruptions in reports: the figures of ``final.json``, as they were measured."""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nni_robust.corruptions import CorruptionResult, evaluate_corruptions
from nni_robust.report import build_comparison, build_report, plot_corruptions

NAMES = ["gaussian_noise", "contrast", "pixelate"]


def measured(seed: int, names: list[str] = NAMES) -> CorruptionResult:
    """A real measurement: rows and keys are those of a run."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        x = torch.rand(60, 3, 8, 8)
        with torch.no_grad():
            y = net(x).argmax(1)
        return evaluate_corruptions(net, (x, y), names, [1, 3, 5])


def write_run(folder: Path, networks: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": folder.name, "status": "finished"}))
    final = {"threat": {"norm": "linf", "eps": 0.1}, "networks": networks}
    (folder / "final.json").write_text(json.dumps(final))
    return folder


def network(label: str, corruptions: Any) -> dict[str, Any]:
    metrics = {"clean": 0.9, "pgd20@0.1": 0.5}
    return {"label": label, "metrics": metrics, "corruptions": corruptions}


def rows(page: str) -> list[list[str]]:
    body = page.split('<table id="corruptions-table"')[1].split("</table>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in body.split("<tr")[1:]]
    return [[" ".join(re.sub(r"<[^>]*>", " ", c).split()) for c in row] for row in cells]


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def expected(*found: CorruptionResult) -> list[list[str]]:
    return [
        ["none", *(percent(one.clean) for one in found)],
        *(
            [name.replace("_", " "), *(percent(one.mean_of(name)) for one in found)]
            for name in NAMES
        ),
        ["mean corruption accuracy", *(percent(one.mean) for one in found)],
    ]


def test_the_table_has_the_measured_means(tmp_path: Path) -> None:
    one, two = measured(0), measured(1)
    assert one.mean != two.mean
    networks = [network("best", one.as_dict()), network("random", two.as_dict())]
    page = build_report(write_run(tmp_path / "a", networks)).read_text(encoding="utf-8")
    head, *body = rows(page)
    assert head == ["corruption", "Best found %", "Random, equal budget %"]
    assert body == expected(one, two)
    told = ", ".join(f"{s}: {percent(v)} %" for s, v in one.accuracy["contrast"].items())
    assert f'title="severity {told}"' in page
    assert "mean over the severities 1, 3, 5" in page
    assert "n&nbsp;=&nbsp;60" in page
    assert "cannot be compared" not in page
    assert "fig-corruptions-" in page


def test_a_comparison_has_the_best_networks(tmp_path: Path) -> None:
    one, two = measured(0), measured(1)
    folders = [
        write_run(tmp_path / name, [network("random", {}), network("best", found.as_dict())])
        for name, found in (("a", one), ("b", two))
    ]
    page = build_comparison(folders).read_text(encoding="utf-8")
    assert rows(page) == [["corruption", "a %", "b %"], *expected(one, two)]
    assert "fig-corruptions-" in page


def test_other_corruptions_are_told(tmp_path: Path) -> None:
    networks = [
        network("best", measured(0).as_dict()),
        network("random", measured(0, ["fog"]).as_dict()),
    ]
    page = build_report(write_run(tmp_path / "a", networks)).read_text(encoding="utf-8")
    assert [row[0] for row in rows(page)[2:-1]] == ["gaussian noise", "contrast", "pixelate", "fog"]
    assert [row[2] for row in rows(page)[2:5]] == ["–", "–", "–"]
    assert "cannot be compared" in page


def test_unreliable_figures_are_marked(tmp_path: Path) -> None:
    found = measured(0).as_dict()
    found["reliability"]["unreliable"] = ["randomised: <b>it is</b>"]
    page = build_report(write_run(tmp_path / "a", [network("best", found)])).read_text("utf-8")
    assert rows(page)[0][1] == "Best found unreliable %"
    assert "randomised: &lt;b&gt;it is&lt;/b&gt;" in page
    assert "<b>it is" not in page


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        {},
        {"accuracy": 3},
        {"accuracy": {"fog": 1, "snow": {"x": 0.5, "1": None}}},
        {"accuracy": {}, "clean": "x"},
    ],
)
def test_without_figures_there_is_no_table(tmp_path: Path, odd: Any) -> None:
    page = build_report(write_run(tmp_path / "a", [network("best", odd)])).read_text("utf-8")
    assert "corruptions-table" not in page
    assert "Common corruptions" not in page


def test_odd_figures_beside_good_ones(tmp_path: Path) -> None:
    found = measured(0)
    odd = copy.deepcopy(found.as_dict())
    odd |= {"clean": None, "pictures": "many", "reliability": 3}
    odd["accuracy"] |= {"<script>alert(1)</script>": {"1": 0.5}, "fog": "x"}
    page = build_report(write_run(tmp_path / "a", [network("best", odd)])).read_text("utf-8")
    assert rows(page)[1] == ["none", "–"]
    assert rows(page)[2:5] == expected(found)[1:4]
    assert "<script>alert(1)" not in page


def test_curves_are_of_the_numbers_given() -> None:
    found = {"a": {"fog": {5: 0.2, 1: 0.6}, "snow": {1: 0.5}}, "b": {"snow": {1: 0.4, 2: 0.3}}}
    figure = plot_corruptions(found, clean={"a": 0.9})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["fog", "snow"]
    lines = [
        {
            line.get_label(): np.stack(line.get_data(), 1).round(6).tolist()
            for line in axes.lines
            if len(line.get_xdata())
        }
        for axes in figure.axes
    ]
    assert lines == [
        {"a": [[0, 90], [1, 60], [5, 20]]},
        {"a": [[0, 90], [1, 50]], "b": [[1, 40], [2, 30]]},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="svg")
