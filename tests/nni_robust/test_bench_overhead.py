"""``bench overhead``: what its figures are made of, and the command (slow: it starts NNI)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
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


def test_too_few_trials_are_refused() -> None:
    for settings in (Overhead(trials=2, concurrency=1), Overhead(trials=4, concurrency=4)):
        with pytest.raises(UserError, match=r"--trials \d is not allowed; more than"):
            run_overhead_bench(settings)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["NNI starts", "trials run"])
def test_a_terminated_bench_leaves_no_web_server(tmp_path: Path, moment: str) -> None:
    """Also of a manager that has not answered yet when the signal comes."""
    command = [sys.executable, "-m", "nni_robust", "bench", "overhead", "--quick"]
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    bench = psutil.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    managers: list[psutil.Process] = []
    try:
        end = time.monotonic() + 200
        while not managers or (moment == "trials run" and not managers[0].children()):
            assert bench.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
            managers = [p for p in bench.children() if _is_manager(p)]
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(120) == 130
        _, alive = psutil.wait_procs(managers, timeout=10)
        assert alive == []
    finally:
        for process in (bench, *managers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _is_manager(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(Path(part).name == "main.js" for part in process.cmdline())
    return False


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
    quick = {"nni", "nni-robust"}
    assert quick < set(VARIANTS)
    assert {entry["variant"] for entry in found["summary"]} == quick
    for measured in found["rows"]:
        assert measured["latency"] > 0
        assert measured["period"] > 0
    assert (tmp_path / "out" / "overhead.csv").read_text().count("\n") == len(quick) + 1
    assert Path.cwd() == tmp_path
