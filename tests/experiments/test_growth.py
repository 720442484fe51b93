"""The growth benchmark: its fit, and that it runs; the search on paper."""

from __future__ import annotations

import csv
import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def growth() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "growth_law.py"))


@pytest.mark.parametrize(
    ("fixed", "each", "power"), [(3.0, 0.5, 1.0), (0.0, 0.2, 2.0), (1.0, 2.0, 0.5), (4.0, 0.0, 0.0)]
)
def test_law_is_found_again(
    growth: dict[str, Any], fixed: float, each: float, power: float
) -> None:
    values = [1, 2, 4, 8, 16, 32]
    found = growth["law"](values, [fixed + each * v**power for v in values])
    if each == 0:
        assert found[0] + found[1] == pytest.approx(fixed)
        assert found[1] == 0 or found[2] == 0
    else:
        assert found == pytest.approx((fixed, each, power), abs=1e-6)


def test_law_of_measurements_that_scatter(growth: dict[str, Any]) -> None:
    values = [1, 2, 5, 10, 20, 50, 100]
    scatter = [1.04, 0.97, 1.02, 0.96, 1.03, 0.98, 1.01]
    seconds = [(0.2 + 0.1 * v) * s for v, s in zip(values, scatter, strict=True)]
    assert growth["law"](values, seconds)[2] == pytest.approx(1, abs=0.06)


def test_plan_is_the_arithmetic_of_passes() -> None:
    script = runpy.run_path(str(SCRIPTS / "search_plan.py"))
    search = script["Search"](
        candidates=10,
        supernet_epochs=2,
        supernet_steps=1,
        tuned=0,
        scoring_steps=20,
        overhead=9.0,
        decoding=0,
    )
    hours = script["plan"](search, rate=1e15, gpus=1)
    # RobNet-large on ImageNet: 1.412 GMACs, 2 FLOP each; FGSM training costs 5 forward passes.
    assert hours["supernet"] * 3600 == pytest.approx(2 * 1_281_167 * 5 * 2.824e9 / 1e15)
    assert hours["scoring"] * 3600 == pytest.approx(10 * 10_000 * 41 * 2.824e9 / 1e15)
    assert hours["trial overhead"] * 3600 == pytest.approx(90)
    more = script["plan"](search, rate=1e15, gpus=8)
    assert more["supernet"] == pytest.approx(hours["supernet"] / 8)
    slow = script["plan"](dataclasses.replace(search, decoding=0.1, workers=4), 1e15, gpus=2)
    assert slow["supernet"] * 3600 == pytest.approx(2 * 1_281_167 * 0.1 / 4 / 2)
    assert more["total"] == pytest.approx(sum(v for k, v in more.items() if k != "total"))


def test_quick_run_goes_on_and_draws(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPTS / "growth.py"),
        "measure",
        "--quick",
        "--out",
        str(tmp_path),
    ]
    command += ["--quantities", "attack steps", "picture side"]
    subprocess.run(command, check=True, capture_output=True)
    rows = list(csv.DictReader((tmp_path / "growth.csv").open(encoding="utf-8")))
    assert {(row["quantity"], row["value"]) for row in rows} == {
        *(("attack steps", value) for value in ("1", "2", "4")),
        *(("picture side", value) for value in ("32", "64")),
    }
    assert all(float(row["seconds"]) > 0 and row["torch"] for row in rows)
    subprocess.run(command, check=True, capture_output=True)
    assert list(csv.DictReader((tmp_path / "growth.csv").open(encoding="utf-8"))) == rows
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    laws = list(csv.DictReader((tmp_path / "laws.csv").open(encoding="utf-8")))
    assert [law["quantity"] for law in laws] == ["attack steps", "picture side"]


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("search_plan.py", ["--gpus", "0"], "--gpus takes whole numbers of 1 or more"),
        ("search_plan.py", ["--rate", "-1"], "--rate numbers above 0"),
        ("growth.py", ["summary", "--out", "."], "'growth.csv' holds no measurements"),
    ],
)
def test_what_cannot_be_reckoned_is_told_in_words(
    script: str, arguments: list[str], told: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
