"""Runs a conformance suite on a plug-in that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Outcomes:
    """What pytest reports, as a plug-in of it."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rsplit("::", 1)[1]
        if report.failed:
            self.failed.add(name)
        elif report.passed and report.when == "call":
            self.passed.add(name)


@pytest.fixture
def failing(tmp_path: Path) -> Callable[[type], set[str]]:
    """Names of the tests of a suite that fail, when pytest collects and runs it."""

    def run(suite: type) -> set[str]:
        folder = tmp_path / suite.__name__
        folder.mkdir()
        # importlib remembers modules by name, for all that pytest runs in this process
        file = folder / f"test_{suite.__module__.rsplit('.', 1)[-1]}_{suite.__name__}.py"
        found = f"sys.modules[{suite.__module__!r}].{suite.__qualname__}"
        file.write_text(f"import sys\n\nTestIt = {found}\n")
        (folder / "pytest.ini").write_text("[pytest]\n")
        without = ["cacheprovider", "xdist", "timeout", "faulthandler", "warnings"]
        outcomes = Outcomes()
        pytest.main(
            [
                *(f"-pno:{name}" for name in without),
                *("-c", str(folder / "pytest.ini"), "--rootdir", str(folder)),
                *("--basetemp", str(folder / "temporary"), "--import-mode=importlib", str(file)),
            ],
            plugins=[outcomes],
        )
        assert outcomes.passed, "nothing ran"
        return outcomes.failed

    return run
