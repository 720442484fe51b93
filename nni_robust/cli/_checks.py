"""What ``nni-robust doctor`` looks at: one function per question, each gives one :class:`Check`.

Every rule here answers a failure that was met for real: NNI 3.0 is unmaintained, and some of its
neighbours moved on.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Literal

__all__ = ["Check", "run_checks"]

Status = Literal["ok", "warn", "fail"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One finding.

    Parameters
    ----------
    name
        What was looked at.
    status
        ``"fail"`` where nni-robust cannot work so, ``"warn"`` where the user should know.
    found
        One sentence.
    advice
        What to do; empty where nothing needs to be done.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def run_checks(port: int) -> list[Check]:
    """Every check, in order; one that breaks itself is a failure and does not hide the others.

    Parameters
    ----------
    port
        The port that the web UI would take.
    """
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("Python", check_python),
        ("versions", check_versions),
        ("torchvision", check_torchvision),
        ("nni.nas", check_nas),
        ("nnictl", check_pkg_resources),
        ("NNI's node binary", check_node),
        ("port", lambda: check_port(port)),
        ("GPU", check_gpu),
        ("threads", check_threads),
        ("experiments folder", check_home),
        ("loading weights", check_weights_only),
        ("web server", lambda: check_web_server(port)),
    ]
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as e:
        return Check(name, "fail", f"the check itself failed with {type(e).__name__}: {e}.")


def numbers(version: str) -> tuple[int, ...]:
    """``"2.13.0+cpu"`` -> ``(2, 13, 0)``; enough to order released versions."""
    parts = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, parts.group().split("."))) if parts else ()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_python() -> Check:
    """NNI 3.0 ran on 3.10 to 3.12."""
    found = f"Python {platform.python_version()} at {sys.executable}."
    if sys.version_info >= (3, 13):
        return Check(
            "Python", "warn", found, "NNI's NAS was tried on 3.10 to 3.12 only; prefer one of them."
        )
    return Check("Python", "ok", found)


#: Package -> (lowest version, first version that is too new or None, why not newer).
RANGES: dict[str, tuple[str, str | None, str]] = {
    "nni": ("3.0", "3.1", "nni-robust repairs internals of NNI 3.0"),
    "torch": ("2.1", None, ""),
    "torchvision": ("0.16", None, ""),
    "pytorch-lightning": ("2.0", "3", "nni.nas was tried with Lightning 2"),
    "torchmetrics": ("0.7", "1.7", "1.7 and later import torchvision at once"),
    "setuptools": ("0", "82", "nnictl imports pkg_resources, which 82 dropped"),
}


def check_versions() -> Check:
    """The installed versions lie in the ranges that work together."""
    found, wrong = [], []
    for package, (low, high, why) in RANGES.items():
        version = _version(package)
        found.append(f"{package} {version or 'missing'}")
        if version is None or numbers(version) < numbers(low):
            wrong.append(f"'{package}>={low}'")
        elif high is not None and numbers(version) >= numbers(high):
            wrong.append(f"'{package}<{high}' ({why})")
    text = ", ".join(found) + "."
    if wrong:
        return Check("versions", "fail", text, f"pip install {' '.join(wrong)}")
    return Check("versions", "ok", text)


def check_torchvision() -> Check:
    """torchvision belongs to the installed torch, and its compiled part loads."""
    torch, torchvision = _version("torch") or "", _version("torchvision") or ""
    for requirement in metadata.requires("torchvision") or []:
        pin = re.fullmatch(r"torch\s*\(?==\s*([\d.]+)\)?", requirement.split(";")[0].strip())
        if pin and numbers(pin.group(1)) != numbers(torch):
            return Check(
                "torchvision",
                "fail",
                f"torchvision {torchvision} is made for torch {pin.group(1)}, torch is {torch}.",
                f"pip install torch=={pin.group(1)} torchvision=={torchvision.split('+')[0]}",
            )
    from nni_robust.data import import_torchvision

    module = import_torchvision()
    if not import_module("torchvision.extension")._has_ops():
        return Check(
            "torchvision",
            "warn",
            f"torchvision {module.__version__} was built for another kind of torch than {torch}; "
            "nni-robust imports it all the same, and only torchvision.ops does not work.",
            "Nothing, unless you need torchvision.ops: then install both from one index, such as "
            "https://download.pytorch.org/whl/cpu.",
        )
    return Check("torchvision", "ok", f"torchvision {module.__version__} fits torch {torch}.")


def check_nas() -> Check:
    """``nni.nas`` imports: torch, Lightning and torchmetrics get along."""
    try:
        import_module("nni.nas.nn.pytorch")
    except Exception as e:
        reason = " ".join(str(e).split())
        return Check(
            "nni.nas",
            "fail",
            f"importing nni.nas fails with {type(e).__name__}: {reason}.",
            "pip install 'pytorch-lightning>=2,<3' 'torchmetrics<1.7'",
        )
    return Check("nni.nas", "ok", "nni.nas imports.")


def check_pkg_resources() -> Check:
    """``nnictl`` needs pkg_resources, which setuptools 82 dropped."""
    if util.find_spec("pkg_resources") is None:
        return Check(
            "nnictl",
            "fail",
            "pkg_resources is missing; nnictl cannot start without it.",
            "pip install 'setuptools<82'",
        )
    return Check("nnictl", "ok", "pkg_resources is there, so nnictl can start.")


def check_node() -> Check:
    """The node program inside the nni wheel exists and runs."""
    name = "NNI's node binary"
    again = "pip install --force-reinstall --no-deps 'nni==3.0'"
    spec = util.find_spec("nni_node")
    if spec is None or not spec.submodule_search_locations:
        return Check(name, "fail", "the package nni_node is missing.", again)
    folder = Path(spec.submodule_search_locations[0])
    node = folder / ("node.exe" if os.name == "nt" else "node")
    if not (node.is_file() and (folder / "main.js").is_file()):
        return Check(name, "fail", f"{folder} holds no node program with its main.js.", again)
    if not os.access(node, os.X_OK):
        return Check(name, "fail", f"{node} is not executable.", f"chmod +x '{node}'")
    try:
        answer = subprocess.run(
            [str(node), "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as e:
        advice = "This machine's processor or C library is not one that the nni wheel supports."
        return Check(name, "fail", f"{node} does not run: {e}.", advice)
    return Check(name, "ok", f"node {answer.stdout.strip()} at {node}.")


def check_port(port: int) -> Check:
    """Nobody listens on the web UI's port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as e:
            return Check(
                "port",
                "fail",
                f"port {port} cannot be taken: {e.strerror}.",
                "Choose another with 'nni-robust run … --port N', or stop what holds it "
                "('nnictl experiment list' names NNI's own).",
            )
    return Check("port", "ok", f"port {port} is free.")


def check_gpu() -> Check:
    """CUDA devices that torch sees."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("GPU", "ok", f"{len(names)} CUDA device(s): {', '.join(names)}.")
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", "ok", "no CUDA device; everything runs on the CPU.")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    return Check(
        "GPU",
        "warn",
        f"nvidia-smi is here, but torch {torch.__version__} (built for {build}) sees no device.",
        "Install a torch built for this driver, see https://pytorch.org/get-started/locally.",
    )


def check_threads() -> Check:
    """torch does not want more threads than this process may use."""
    import torch

    threads = torch.get_num_threads()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    found = f"torch uses {threads} thread(s) on {cores} usable core(s)."
    if threads > cores:
        return Check("threads", "warn", found, f"export OMP_NUM_THREADS={cores}")
    return Check("threads", "ok", found)


def check_home() -> Check:
    """NNI can write its experiments folder."""
    folder = Path.home() / "nni-experiments"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as e:
        return Check(
            "experiments folder",
            "fail",
            f"{folder} cannot be written: {e.strerror}.",
            "Set HOME to a folder that can; NNI keeps its experiments below it.",
        )
    return Check("experiments folder", "ok", f"{folder} can be written.")


def check_weights_only() -> Check:
    """torch.load(weights_only=True) is safe against hostile files only from 2.10 on."""
    torch = _version("torch") or ""
    name, advice = "loading weights", "Load .pt files from strangers with torch>=2.10 only."
    if numbers(torch) < (2, 6):
        found = f"torch {torch}: a hostile .pt file can run code (CVE-2025-32434)."
        return Check(name, "warn", found, advice)
    if numbers(torch) < (2, 10):
        found = f"torch {torch}: a hostile .pt file can corrupt memory (CVE-2026-24747)."
        return Check(name, "warn", found, advice)
    return Check(name, "ok", f"torch {torch} has no known hole in weights-only loading.")


def check_web_server(port: int) -> Check:
    """Always a warning: nothing in NNI's configuration changes it."""
    return Check(
        "web server",
        "warn",
        "NNI's web server listens on all interfaces without a password while an experiment runs; "
        "whoever reaches it can read logs, change, stop and delete the experiment.",
        f"On a shared network close the port in the firewall and look at it through a tunnel: "
        f"ssh -N -L {port}:127.0.0.1:{port} USER@HOST, then open http://127.0.0.1:{port}.",
    )
