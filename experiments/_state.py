"""``run.json``: what a run is, how it stands, and on which machine with which versions."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nni_robust.store import read_json, write_json

from .schema import Experiment

__all__ = ["RunState"]

_PACKAGES = (
    "nni-robust",
    "nni",
    "torch",
    "torchvision",
    "torchattacks",
    "pytorch-lightning",
    "torchmetrics",
    "numpy",
    "scikit-learn",
)


class RunState:
    """``run.json``: what the run is and how it stands."""

    def __init__(self, run: Path, settings: Experiment, store: Path) -> None:
        self.path = run / "run.json"
        self.start = time.monotonic()
        if self.path.is_file():
            self.value = read_json(self.path)
        else:
            self.value = {"name": settings.name, "created": _now(), "seconds": 0.0, "nni": []}
        self.before = float(self.value["seconds"])
        self.value.update(status="running", versions=_versions(), machine=_machine())
        if store != run / "store":
            self.value["store"] = str(store)
        write_json(self.path, self.value)

    def started(self, experiment_id: str, url: str | None) -> None:
        self.value["nni"].append({"id": experiment_id, "url": url, "started": _now()})
        write_json(self.path, self.value)

    def ended(self, status: str) -> None:
        self.value.update(
            status=status, seconds=round(self.before + time.monotonic() - self.start, 1)
        )
        write_json(self.path, self.value)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _machine() -> dict[str, Any]:
    import torch

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
