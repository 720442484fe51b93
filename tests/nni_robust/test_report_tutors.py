"""The drawing of who teaches whom, and its place in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nni_robust.report import build_report
from nni_robust.report._tutors import plot_tutors, read_tutors


def found(**changes: Any) -> dict[str, Any]:
    value = {
        "mapping": "searched",
        "teachers": ["wrn-16-1"],
        "students": [
            {"name": name, "kind": "pw", "side": side}
            for name, side in (("stem", 8), ("a.pw", 8), ("b.pw", 4))
        ],
        "layers": [
            {"name": name, "kind": "conv1", "side": side, "teacher": 0}
            for name, side in (("stem_conv", 8), ("<b>conv2", 4))
        ],
        "matrix": [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]],
        "tutors": [
            {"student": s, "tutor": t, "teacher": 0, "probability": p, "margin": m}
            for s, t, p, m in (
                ("stem", "stem_conv", 0.9, 0.8),
                ("a.pw", "stem_conv", 0.6, 0.2),
                ("b.pw", "<b>conv2", 0.8, 0.6),
            )
        ],
    }
    return {**value, **changes}


def write(folder: Path, value: Any) -> Path:
    (folder / "run.json").write_text(json.dumps({"name": "x", "status": "finished"}))
    (folder / "config.yaml").write_text("name: x\n")
    (folder / "tutors.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_lines_are_as_wide_as_their_probabilities(tmp_path: Path) -> None:
    read = read_tutors(write(tmp_path, found()))
    assert read is not None
    axes = plot_tutors(read).axes[0]
    lines = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    drawn = {
        (round(float(line.get_ydata()[0]), 3), round(float(line.get_ydata()[1]), 3)): line
        for line in lines
    }
    # All tutors, and of the others the two above 0.15 of the strongest, 0.9.
    assert set(drawn) == {(0, 0), (0.5, 0), (0.5, 1), (1, 1), (1, 0)}
    by_width = sorted(drawn, key=lambda ends: drawn[ends].get_linewidth())
    assert by_width == [(1, 0), (0.5, 1), (0.5, 0), (1, 1), (0, 0)]
    assert drawn[0.5, 0].get_alpha() > drawn[0.5, 1].get_alpha()


def test_report_has_figure_and_table(tmp_path: Path) -> None:
    page = build_report(write(tmp_path, found())).read_text(encoding="utf-8")
    assert 'id="tutors"' in page
    assert 'id="tutors-table"' in page
    assert "fig-tutors" in page
    assert "&lt;b&gt;conv2" in page
    assert "<b>conv2" not in page


@pytest.mark.parametrize(
    "value",
    [
        "{",
        {"mapping": "none"},
        found(matrix=[[1.0]]),
        found(tutors=[{"student": 1}]),
        found(layers=["x"]),
        [],
    ],
)
def test_odd_files_leave_the_section_out(tmp_path: Path, value: Any) -> None:
    page = build_report(write(tmp_path, value)).read_text(encoding="utf-8")
    assert 'id="tutors"' not in page
