"""The report's section on compression, and the figure behind it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust.analysis import run_topology
from nni_robust.report import build_report
from nni_robust.report._compression import plot_compression, read_compression
from nni_robust.search_spaces import WideResNetSpace
from nni_robust.store import append_record


def run(folder: Path, space: Any = "wide-resnet", **teacher: Any) -> Path:
    """A run folder as a search over networks below a teacher leaves it."""
    folder.mkdir()
    settings = {
        "name": "compressed $1",
        "task": {"dataset": "digits", "attack": "pgd20"},
        "space": {"name": space, "depths": [4, 4, 4], "widths": [8, 8, 8], "search_blocks": True},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    for index, (code, score) in enumerate([("4x8b 3x4b 1x2r", 0.5), ("2x8b 3x4b 3x2b", 0.4)]):
        append_record(
            folder / "candidates.jsonl",
            {
                "phase": "candidate",
                "index": index,
                "sample": WideResNetSpace.decode(code, search_blocks=True),
                "code": code,
                "metrics": {"default": score, "clean": 0.6, "macs": 1e6, "params": 1e4},
                "status": "ok",
            },
        )
    append_record(
        folder / "candidates.jsonl",
        {"phase": "teacher", "index": 9, "sample": {}, "metrics": {}, "status": "ok", **teacher},
    )
    return folder


def cells(page: str) -> list[list[str]]:
    """Texts of the table of stages."""
    table = page[page.index('id="compression-table"') :]
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    return [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in body.split("<tr>")[1:]]


def test_the_report_shows_what_stays(tmp_path: Path) -> None:
    page = build_report(run(tmp_path / "run", lipschitz=12.3456)).read_text()
    assert '<a href="#compression">Compression</a>' in page
    assert cells(page) == [
        ["1", "4 of 4", "8 of 8", "basic", "100.0", "100.0", "75.0", "100.0"],
        ["2", "3 of 4", "4 of 8", "basic", "75.0", "50.0", "75.0", "50.0"],
        ["3", "1 of 4", "2 of 8", "robust", "25.0", "25.0", "50.0", "25.0"],
    ]
    assert "Local Lipschitz value: 12.3 of the teacher (" in page
    assert "stage 3 1 of 4 blocks, width 2 of 8, robust blocks" in page
    assert "fig-compression" in page


def test_runs_of_other_spaces_have_no_such_section(tmp_path: Path) -> None:
    folder = run(tmp_path / "other", "robnet")
    assert read_compression(folder) is None
    assert "Compression" not in build_report(folder).read_text()


@pytest.mark.parametrize("damage", ["config", "records", "sample"])
def test_damaged_runs_still_have_a_report(tmp_path: Path, damage: str) -> None:
    folder = run(tmp_path / "run")
    if damage == "config":
        (folder / "config.yaml").write_text("[1")
    elif damage == "records":
        (folder / "candidates.jsonl").write_text("{}\n{\n")
    else:
        append_record(
            folder / "candidates.jsonl",
            {"sample": {"stage1/depth": 99}, "metrics": {"default": 1.0}, "status": "ok"},
        )
    assert read_compression(folder) is None
    assert build_report(folder).is_file()


def test_the_figure_of_two_runs(tmp_path: Path) -> None:
    """Heights of the bars, the numbers in them, and the means of the best candidates."""
    first = run_topology(run(tmp_path / "a"), label="clean")
    second = run_topology(run(tmp_path / "b"), label="AA", top=1)
    canvas = plot_compression([first, second])
    depth, width = canvas.axes
    assert [bar.get_height() for bar in depth.patches] == [100, 75, 25] * 2
    assert [bar.get_height() for bar in width.patches] == [100, 50, 25] * 2
    assert [text.get_text() for text in depth.texts] == ["4", "3", "1 R"] * 2
    means = [line.get_ydata()[0] for line in depth.lines if len(line.get_ydata()) == 1]
    assert means == [75, 75, 50]  # one candidate alone has no spread
    assert {text.get_text() for text in canvas.legends[0].get_texts()} == {
        "clean",
        "AA",
        "mean and range of its best 2",
    }
