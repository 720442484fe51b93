"""``doctor``: each check finds what it is there for."""

from __future__ import annotations

import json
import socket
import stat
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from nni_robust.cli import _checks, main


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def test_doctor_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    code = main(["doctor", "--port", str(port), "--json"])
    answer = json.loads(capsys.readouterr().out)
    failed = [c for c in answer["checks"] if c["status"] == "fail"]
    assert failed == []
    assert (code, answer["ok"]) == (0, True)
    server = next(c for c in answer["checks"] if c["name"] == "web server")
    assert server["status"] == "warn"
    assert "without a password" in server["found"]
    assert f"ssh -N -L {port}:127.0.0.1:{port}" in server["advice"]


def test_a_failed_check_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("", 0))
        held.listen()
        port = held.getsockname()[1]
        assert main(["doctor", "--port", str(port)]) == 1
    text = capsys.readouterr().out
    assert f"fail  port: port {port} cannot be taken" in text
    assert "not ready" in text


def test_a_check_that_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> _checks.Check:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(_checks, "check_gpu", broken)
    found = {c.name: c for c in _checks.run_checks(free_port())}
    assert found["GPU"].status == "fail"
    assert "RuntimeError: no such thing" in found["GPU"].found
    assert found["port"].status == "ok"


@pytest.mark.parametrize(
    ("version", "expected"), [("2.13.0+cpu", (2, 13, 0)), ("3.0", (3, 0)), ("2.1rc1", (2, 1))]
)
def test_version_numbers(version: str, expected: tuple[int, ...]) -> None:
    assert _checks.numbers(version) == expected


@pytest.mark.parametrize(
    ("torch", "status", "cve"),
    [
        ("2.5.1", "warn", "CVE-2025-32434"),
        ("2.6.0", "warn", "CVE-2026-24747"),
        ("2.9.1+cu128", "warn", "CVE-2026-24747"),
        ("2.10.0", "ok", ""),
        ("2.13.0+cpu", "ok", ""),
    ],
)
def test_weights_only(torch: str, status: str, cve: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checks, "_version", lambda package: torch)
    check = _checks.check_weights_only()
    assert check.status == status
    assert cve in check.found


@pytest.mark.parametrize(
    ("package", "version", "advice"),
    [
        ("setuptools", "82.0.1", "setuptools<82"),
        ("torchmetrics", "1.7.0", "torchmetrics<1.7"),
        ("nni", "2.10", "nni>=3.0"),
        ("pytorch-lightning", None, "pytorch-lightning>=2.0"),
    ],
)
def test_versions_out_of_range(
    package: str, version: str | None, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "nni": "3.0",
        "torch": "2.13.0",
        "torchvision": "0.28.0",
        "pytorch-lightning": "2.6.6",
        "torchmetrics": "1.6.3",
        "setuptools": "81.0.0",
    }
    monkeypatch.setattr(_checks, "_version", good.get)
    assert _checks.check_versions().status == "ok"
    monkeypatch.setattr(_checks, "_version", {**good, package: version}.get)
    check = _checks.check_versions()
    assert check.status == "fail"
    assert advice in check.advice


def test_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.12.0", "torchvision": "0.28.0"}
    monkeypatch.setattr(_checks, "_version", versions.get)
    monkeypatch.setattr(_checks.metadata, "requires", lambda name: ["numpy", "torch==2.13.0"])
    check = _checks.check_torchvision()
    assert check.status == "fail"
    assert "pip install torch==2.13.0 torchvision==0.28.0" in check.advice


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "ok"), ((3, 12), "ok"), ((3, 13), "warn")]
)
def test_python(version: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = namedtuple("fields", "major minor micro")
    monkeypatch.setattr(sys, "version_info", fields(*version, 1))
    assert _checks.check_python().status == status


class TestNode:
    """A package ``nni_node`` of our own in front of the real one."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "nni_node"
        folder.mkdir()
        (folder / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "nni_node", raising=False)
        return folder

    def program(self, folder: Path, text: str, mode: int) -> None:
        (folder / "main.js").touch()
        node = folder / "node"
        node.write_text(text)
        node.chmod(mode)

    def test_missing(self, folder: Path) -> None:
        check = _checks.check_node()
        assert check.status == "fail"
        assert "no node program" in check.found

    def test_not_executable(self, folder: Path) -> None:
        self.program(folder, "#!/bin/sh\necho v18\n", stat.S_IRUSR)
        check = _checks.check_node()
        assert (check.status, check.advice) == ("fail", f"chmod +x '{folder / 'node'}'")

    def test_does_not_run(self, folder: Path) -> None:
        self.program(folder, "#!/bin/sh\nexit 3\n", stat.S_IRWXU)
        assert _checks.check_node().status == "fail"

    def test_runs(self, folder: Path) -> None:
        self.program(folder, "#!/bin/sh\necho v18.15.0\n", stat.S_IRWXU)
        check = _checks.check_node()
        assert check.status == "ok"
        assert "v18.15.0" in check.found


def test_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").touch()  # a file, so that nothing can lie below it, not even for root
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    check = _checks.check_home()
    assert check.status == "fail"
    assert "cannot be written" in check.found


def test_home_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _checks.check_home().status == "ok"
    assert list((tmp_path / "nni-experiments").iterdir()) == []


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    check = _checks.check_threads()
    assert check.status == "warn"
    assert check.advice.startswith("export OMP_NUM_THREADS=")


def test_nnictl_needs_pkg_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _checks.check_pkg_resources().status == "ok"
    monkeypatch.setattr(_checks.util, "find_spec", lambda name: None)
    assert _checks.check_pkg_resources().status == "fail"
