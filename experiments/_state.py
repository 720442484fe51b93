"""``run.json``: what a run is, how it stands, and on which machine with which versions."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
import time
import warnings
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nni_robust.config import read_yaml
from nni_robust.errors import DamageWarning, UserError
from nni_robust.redaction import redact_text
from nni_robust.store import read_json, remove_temporaries, set_aside, write_json

from .schema import Experiment

__all__ = ["RunState", "begin", "other_settings", "read_state"]

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


def read_state(run: Path) -> dict[str, Any] | None:
    """What ``run.json`` says; None where there is none.

    A damaged one is set aside with a :class:`DamageWarning`: all that a resumed run needs of it can
    be found elsewhere in the folder, unless its store lies outside.
    """
    path = run / "run.json"
    if not path.is_file():
        return None
    try:
        value = read_json(path)
        if isinstance(value, dict):
            _check(value)
            return value
        problem = f"'{path}' is damaged: it holds no mapping"
    except UserError as e:
        problem = str(e)
    except (KeyError, TypeError, ValueError) as e:
        problem = f"'{path}' is damaged: {type(e).__name__} {e}"
    aside = set_aside(path)
    warnings.warn(
        DamageWarning(f"{problem}; set aside as '{aside.name}' and begun anew"), stacklevel=2
    )
    return None


def _check(value: dict[str, Any]) -> None:
    """Look at what is relied on; raises what a look at something else raises."""
    float(value["seconds"])
    for entry in value["nni"]:
        str(entry["id"])


def begin(run: Path, settings: Experiment) -> dict[str, Any]:
    """Write the ``run.json`` of a run that has not started; its content."""
    value = {
        "name": settings.name,
        "created": _now(),
        "status": "waiting",
        "seconds": 0.0,
        "nni": [],
        "settings": _comparable(settings.as_mapping()),
        "final_begun": _winner_is_known(run),  # where run.json was lost
    }
    write_json(run / "run.json", value)
    return value


def other_settings(run: Path, settings: Experiment, *, new_final: bool = False) -> str | None:
    """How settings differ from those that a run was begun with; None if they do not.

    Settings below ``nni`` may differ: they say how trials run, and not what comes out of them. With
    `new_final` those below ``final`` may, too, until the first final network has begun: no result
    of the search depends on them.
    """
    state = read_state(run) or {}
    kept = state.get("settings")
    if kept is None:  # begun by a version that kept them in config.yaml only
        kept = _comparable(read_yaml(run / "config.yaml"))
    current = _comparable(settings.as_mapping())
    if new_final and not state.get("final_begun", _winner_is_known(run)):
        kept, current = ({**value, "final": None} for value in (kept, current))
    then, now = _flat(kept), _flat(current)
    changed = [
        f"{key}: {then.get(key, '(absent)')!r} there, {now.get(key, '(absent)')!r} now"
        for key in sorted({*then, *now})
        if then.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    return "; ".join(changed) or None


_ABSENT = object()


def _winner_is_known(run: Path) -> bool:
    """Whether final networks may have begun, as far as the folder's other files say."""
    return (run / "best.yaml").exists()


def _comparable(settings: Any) -> dict[str, Any]:
    """Settings as JSON keeps them, without those that may change."""
    plain: dict[str, Any] = _plain({k: v for k, v in settings.items() if k != "nni"})
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


class RunState:
    """``run.json``: what the run is and how it stands."""

    def __init__(self, run: Path, settings: Experiment, store: Path) -> None:
        remove_temporaries(run)
        for folder in run.glob("*"):  # such as a policy's; others write to the store and NNI's own
            if folder.is_dir() and folder.name not in ("store", "nni") and folder != store:
                remove_temporaries(folder, below=True)
        self.path = run / "run.json"
        self.start = time.monotonic()
        # Without config.yaml it was killed before any work, maybe under other settings.
        kept = read_state(run) if (run / "config.yaml").is_file() else None
        self.value = kept or begin(run, settings)
        self.value["settings"] = _comparable(settings.as_mapping())  # maybe with another final
        self.before = float(self.value["seconds"])
        self.value.update(status="running", versions=_versions(), machine=_machine())
        if store != run / "store":
            self.value["store"] = str(store)
        write_json(self.path, self.value)

    def started(self, experiment_id: str, url: str | None) -> None:
        self.value["nni"].append({"id": experiment_id, "url": url, "started": _now()})
        write_json(self.path, self.value)

    def final_begins(self) -> None:
        """From now on the settings of the final networks may not change."""
        self.value["final_begun"] = True
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
        "argv": [Path(sys.argv[0]).name, *map(redact_text, sys.argv[1:])],
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
