"""Trials on another machine, over SSH: NNI's remote service, our wheel there, the store over HTTP.

The other machine is this one, seen through an sshd on loopback that runs in a mount namespace of
its own: there the checkout and the run folder are empty, so whatever a trial uses it got from the
wheel, or over the network.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust.cli import main
from nni_robust.experiments import run_experiment
from nni_robust.store import read_json, read_records

Write = Callable[..., str]
CheckPairs = Callable[[Path], int]

ROOT = Path(__file__).resolve().parents[2]

FINAL = {"rivals": ["random"], "train": {"epochs": 1, "attack": {"steps": 1}}}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where to log in, and what is there."""

    port: int
    key: Path
    venv: Path

    def settings(self) -> dict[str, Any]:
        """The section ``nni.training_service`` of an experiment."""
        machine = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "root",
            "sshKeyFile": str(self.key),
            "pythonPath": str(self.venv / "bin"),
        }
        return {"platform": "remote", "machineList": [machine]}


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with our wheel; what the wheel needs is taken from this one."""
    folder = tmp_path_factory.mktemp("venv")
    source = tmp_path_factory.mktemp("source")
    # Built from a copy: a build leaves files in the tree.
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    run = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(source / "dist")]
    subprocess.run([*run, str(source)], check=True, timeout=600)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--no-deps", str(wheel)],
        check=True,
        timeout=300,
    )
    # A plain line only adds the folder: the editable install in it is not followed.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    place = folder / "lib" / version / "site-packages" / "rest.pth"
    place.write_text("\n".join(site.getsitepackages()) + "\n")
    return folder


@pytest.fixture
def machine(venv: Path, tmp_path: Path) -> Iterator[Machine]:
    """An sshd on loopback that sees neither the checkout nor ``tmp_path / "run"``."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or os.getuid() != 0:
        pytest.skip("needs root and an sshd (apt-get install openssh-server)")
    folder, home, run = tmp_path / "ssh", tmp_path / "remote-home", tmp_path / "run"
    for new in (folder, home, run):
        new.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)
    keygen = ["ssh-keygen", "-q", "-N", ""]
    subprocess.run([*keygen, "-t", "rsa", "-m", "PEM", "-f", str(folder / "key")], check=True)
    subprocess.run([*keygen, "-t", "ed25519", "-f", str(folder / "host")], check=True)
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host",
        f"AuthorizedKeysFile {folder}/key.pub",
        f"PidFile {folder}/pid",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "StrictModes no",
        "UsePAM no",
        "Subsystem sftp internal-sftp",
        f"SetEnv HOME={home} NNI_ROBUST_CACHE={home}/cache",
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    script = (
        f'mount -t tmpfs none "{ROOT}" && mount -t tmpfs none "{run}" && '
        f'exec "{sshd}" -D -f "{folder}/config" -E "{folder}/log"'
    )
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], start_new_session=True)
    try:
        end = time.monotonic() + 30
        while True:
            assert process.poll() is None, "sshd did not start (no mount namespaces here?)"
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end
            time.sleep(0.2)
        yield Machine(port, folder / "key", venv)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)


def check(run: Path, venv: Path) -> None:
    """Everything was computed there, with the wheel, and is here now."""
    records = [read_json(p) for p in run.glob("store/*/record.json")]
    phases = sorted(r["phase"] for r in records)
    assert phases == ["candidate"] * 3 + ["final best", "final random", "supernet"]
    for record in records:
        assert Path(record["ran"]["package"]).is_relative_to(venv)
    assert read_json(run / "run.json")["status"] == "finished"
    assert (run / "best.safetensors").is_file()
    assert (run / "report.html").is_file()


def plain(run: Path) -> dict[str, dict[str, float]]:
    """Metrics of the candidates by key, without times."""
    return {
        r["key"]: {k: v for k, v in r["metrics"].items() if k != "seconds"}
        for r in read_records(run / "candidates.jsonl")
    }


@pytest.fixture
def sections(machine: Machine) -> dict[str, Any]:
    return {
        "nni": {
            "concurrency": 2,
            "port": free_port(),
            "store_port": free_port(),
            "manager_ip": "127.0.0.1",
            "trial_threads": 1,
            "training_service": machine.settings(),
        }
    }


def test_a_search_whose_trials_run_elsewhere(
    experiment_file: Write,
    tmp_path: Path,
    venv: Path,
    sections: dict[str, Any],
    check_pairs: CheckPairs,
) -> None:
    file = experiment_file(final=FINAL, **sections)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "nni_robust", "run", file, "--out", str(run)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    check(run, venv)
    assert check_pairs(run) == 6

    # The trials' machine gives the figures of this one.
    here = run_experiment(
        experiment_file("here.yml", final=None, nni={"engine": "sequential"}),
        out=str(tmp_path / "here"),
        report=lambda line: None,
    )
    assert plain(run) == plain(here)

    # The token is in no file that the web UI or a log shows.
    token = (run / "trial_code" / ".nni-robust-token").read_bytes()
    holders = {
        p.relative_to(run).parts[0]
        for p in run.rglob("*")
        if p.is_file() and p.suffix != ".tgz" and token in p.read_bytes()
    }
    assert holders == {"trial_code"}


def test_nnictl_starts_the_same_elsewhere(
    experiment_file: Write,
    tmp_path: Path,
    venv: Path,
    sections: dict[str, Any],
    check_pairs: CheckPairs,
) -> None:
    file = experiment_file(final=FINAL, **sections)
    run = tmp_path / "run"
    assert main(["nni-config", file, "--out", str(run)]) == 0
    config = yaml.safe_load((run / "nnictl.yml").read_text())
    assert config["nniManagerIp"] == "127.0.0.1"
    nnictl = str(Path(sys.executable).with_name("nnictl"))
    port = str(sections["nni"]["port"])
    create = [nnictl, "create", "--config", str(run / "nnictl.yml"), "--port", port]
    subprocess.run(create, check=True, timeout=300)
    try:
        end = time.monotonic() + 600
        while not (run / "report.html").is_file():
            assert time.monotonic() < end, "it took too long"
            time.sleep(1)
        check(run, venv)
        assert check_pairs(run) == 6
    finally:
        experiment = next(p.name for p in (run / "nni").iterdir() if not p.is_symlink())
        subprocess.run([nnictl, "stop", experiment], check=True, timeout=120)


def test_five_searches_elsewhere_swap_no_pair(
    experiment_file: Write,
    tmp_path: Path,
    sections: dict[str, Any],
    lookup: dict[str, Any],
    check_pairs: CheckPairs,
) -> None:
    """The remote share of the thirty searches of test_pairs."""
    nni = {**sections["nni"], "concurrency": 4, "trials": 8}
    for seed in range(5):
        file = experiment_file(**lookup, seed=seed, nni=nni)
        out = tmp_path / "run" / str(seed)
        assert check_pairs(run_experiment(file, out=str(out), report=lambda line: None)) == 8
