"""``bench overhead``: what its figures are made of, and the command (slow: it starts NNI)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nni_robust.bench.overhead import VARIANTS, Overhead, run_overhead_bench, summary
from nni_robust.cli import main
from nni_robust.errors import UserError


def row(workload: str, variant: str, period: float) -> dict[str, object]:
    return {"workload": workload, "variant": variant, "first": 1.0, "period": period}


def test_the_summary_compares_medians_within_a_workload() -> None:
    rows = [
        *(row("empty", "nni", p) for p in (4.0, 6.0, 50.0)),
        *(row("empty", "nni-robust", p) for p in (0.4, 0.5, 0.6)),
        row("supernet", "nni-robust", 0.1),
    ]
    theirs, ours, alone = summary(rows)
    assert theirs["period"] == 6.0
    assert theirs["period range"] == "4.00 to 50.00"
    assert "times faster" not in theirs
    assert ours["times faster"] == 12.0
    assert "times faster" not in alone  # nothing of the same workload to compare with


@pytest.mark.parametrize(
    "settings", [Overhead(workloads=("nothing",)), Overhead(variants=("nni", "ours"))]
)
def test_an_unknown_name_is_refused(settings: Overhead) -> None:
    with pytest.raises(UserError, match="is not allowed; allowed: "):
        run_overhead_bench(settings)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    argv = ["bench", "overhead", "--quick", "--workloads", "empty", "--json"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    found = json.loads(out[out.index("{") :])
    assert {entry["variant"] for entry in found["summary"]} == set(VARIANTS)
    for measured in found["rows"]:
        assert measured["latency"] > 0
        assert measured["period"] > 0
    assert (tmp_path / "out" / "overhead.csv").read_text().count("\n") == len(VARIANTS) + 1
    assert Path.cwd() == tmp_path
