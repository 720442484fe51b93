"""What several files share: runs of a conformance suite, and networks for reliability checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_architecture import write_tiny
from torch import Tensor, nn

from nni_robust.attacks import Attack, attack
from nni_robust.data import load_dataset
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel


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


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """The path of a file of a small architecture."""
    return write_tiny(tmp_path / "tiny.yaml")


# --- networks on digits, for the reliability checks ----------------------------------------------

EPS = 0.08
N = 160


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )


def fit(adversary: Attack | None, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(epochs):
        for x, y in load_dataset("digits").train.batches(64, shuffle=True, epoch=epoch):
            shown = x if adversary is None else adversary(net, x, y, seed=epoch)
            optimizer.zero_grad()
            F.cross_entropy(net(shown), y).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def standard() -> nn.Module:
    """Trained on clean digits."""
    return fit(None, 3)


@pytest.fixture(scope="session")
def robust() -> nn.Module:
    """Trained on attacked digits."""
    return fit(attack("pgd", eps=EPS, steps=3), 5)


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """160 validation pictures and labels."""
    x, y = next(iter(load_dataset("digits").validation.batches(N)))
    return x, y


@pytest.fixture
def flags() -> Callable[..., set[str]]:
    """Names of the checks that fail when a network is evaluated."""

    def run(model: nn.Module, data: Any, attacks: Any = ("pgd10",), **settings: Any) -> set[str]:
        found = evaluate(model, data, attacks, threat=ThreatModel(eps=EPS), **settings)
        return {check.name for check in found.reliability.failed}

    return run
