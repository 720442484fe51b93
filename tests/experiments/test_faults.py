"""SIGKILL at random moments, across the strategies: nothing damaged, nothing twice, same result.

``kill_loop.py`` does it, in a process of its own that forks every run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ALL = (
    "random",
    "regularized-evolution",
    "robust-one-shot",
    "rl-compressor",
    "cross-layer-distillation",
    "wide-spectrum",
)


def killed(folder: Path, kills: int, *cases: str) -> list[dict[str, Any]]:
    (folder / "home").mkdir()
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("kill_loop.py"))]
    done = subprocess.run(
        [*command, str(folder / "runs"), str(kills), "0", *cases],
        env={**os.environ, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(found: list[dict[str, Any]], kills: int) -> None:
    assert not [problem for case in found for problem in case["problems"]]
    assert [case["kills"] for case in found] == [kills] * len(found)
    # Some kills came when something was there to lose, and not all when all was done.
    assert any(0 < n < case["trials"] for case in found for n in case["finished_at_kill"])


def test_killed_at_random_moments(tmp_path: Path) -> None:
    cases = "regularized-evolution", "rl-compressor", "cross-layer-distillation", "robust-one-shot"
    check(killed(tmp_path, 2, *cases), 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixty_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = killed(tmp_path, 10, *ALL)
    with capsys.disabled():
        print(f"\n{'case':26}kills  runs  trials  seconds of a whole run  finished when killed")
        for case in found:
            print(
                f"{case['case']:26}{case['kills']:5}{case['runs']:6}{case['trials']:8}"
                f"{case['seconds']:24}  {case['finished_at_kill']}"
            )
    check(found, 10)
    assert sum(case["kills"] for case in found) >= 50
