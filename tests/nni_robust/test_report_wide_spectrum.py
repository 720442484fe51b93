"""The report's section on a wide-spectrum search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nni_robust.report import build_report
from nni_robust.report._wide_spectrum import read_wide_spectrum


def search(seed: int, relative: float, fell_back: bool = False) -> dict[str, Any]:
    return {
        "label": "estimator",
        "seed": seed,
        "drift": {"relative": relative, "changed": 5, "choices": 16},
        "cost": {"train_passes": 1000.0, "measure_passes": 234.0, "seconds": 61.0},
        "signal": {"name": "estimator", "fell_back": fell_back},
        "predictor": {"tau": None, "n": 0},
        "finalists": [{"objective": 1.25}, {"objective": 2.0}],
        "epochs": [
            {"epoch": 1, "phase": "warmup", "drift": {"relative": 0.0}},
            {"epoch": 2, "objective": [1.0, 2.0], "drift": {"relative": 0.5}},
        ],
    }


def write(folder: Path, content: Any) -> None:
    (folder / "run.json").write_text('{"name": "x", "status": "finished"}')
    (folder / "wide_spectrum.json").write_text(json.dumps(content))


def test_rows_curves_and_warnings(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "searches": [search(0, 0.4), search(1, 60.0, fell_back=True)],
            "stability": [
                {"label": "estimator", "result": "best", "shared": [3, 5], "choices": 16}
            ],
            "comparisons": [
                {
                    "seed": 0,
                    "rows": [
                        {
                            "label": "warm-start",
                            "pictures": 64,
                            "tau": 0.93,
                            "passes_share": 0.23,
                            "cpu_seconds_share": 0.3,
                        }
                    ],
                }
            ],
        },
    )
    found = read_wide_spectrum(tmp_path)
    assert found is not None
    assert [row["passes"] for row in found["searches"]] == [1234, 1234]
    curve = {"epoch": [2], "objective": [1.5], "drift": [0.5]}
    assert found["curves"]["estimator, seed 0"] == curve
    first, second, third = found["sentences"]
    assert "seed 0" in first
    assert "mostly the initial noise" in first
    assert "seed 1" in second
    assert "no better than rescaled" in second
    assert "share 4.0 of 16" in third
    page = build_report(tmp_path).read_text()
    assert 'id="wide-spectrum"' in page
    assert "warm-start" in page
    assert "fig-wide-spectrum" in page


@pytest.mark.parametrize("content", [[], {}, {"searches": []}, {"searches": [{"label": "x"}]}])
def test_damaged_or_empty_files_have_no_section(tmp_path: Path, content: Any) -> None:
    write(tmp_path, content)
    assert read_wide_spectrum(tmp_path) is None
    assert 'id="wide-spectrum"' not in build_report(tmp_path).read_text()
