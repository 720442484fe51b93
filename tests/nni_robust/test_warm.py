"""Trials forked from a warm process are as good as processes of their own, and end as those do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TRIAL = """
import json, os, random, sys, threading, time
import torch, nni
from nni.runtime.env_vars import trial_env_vars

if sys.argv[1] == "wait":
    print(os.getpid(), flush=True)
    time.sleep(120)
if sys.argv[1] == "fail":
    raise RuntimeError("no luck")
if sys.argv[1] == "say":
    sys.exit("a reason")
if sys.argv[1] == "thread":
    threading.Thread(target=lambda: (time.sleep(0.5), print("late", flush=True))).start()
    raise SystemExit
print(json.dumps({
    "argv": sys.argv[1:], "cwd": os.getcwd(), "path": sys.path[0], "mine": os.environ["MINE"],
    "trial": nni.get_trial_id(), "experiment": nni.get_experiment_id(),
    "sequence": nni.get_sequence_id(), "channel": trial_env_vars.NNI_TRIAL_COMMAND_CHANNEL,
    "main": __name__, "pid": os.getpid(), "parent": os.getppid(), "random": random.random(),
    "torch": torch.rand(1).item(), "threads": torch.get_num_threads(),
}))
sys.exit(int(sys.argv[2]))
"""

Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "their_trial.py").write_text(TRIAL)
    return folder


@pytest.fixture(scope="module")
def run(code: Path) -> Iterator[Run]:
    """Start a trial command; the first one starts the warm process of this module."""
    temporary = code.parent / "tmp"
    temporary.mkdir()
    environment = {
        **os.environ,
        "NNI_EXP_ID": f"warm{os.getpid()}",
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
    }

    def start(*arguments: str, warm: bool = True, **more: str) -> subprocess.Popen[str]:
        module = ["-m", "nni_robust.nni_adapter.warm", "their_trial"]
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", *(module if warm else module[::2]), *arguments],
            cwd=code,
            env={**environment, "MINE": "", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield start
    for server in servers(temporary):
        server.kill()


def servers(temporary: Path) -> list[psutil.Process]:
    """The warm process and its forks, which look the same."""
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if "nni_robust.nni_adapter.warm.server" in (p.info["cmdline"] or [])
        and any(str(temporary) in part for part in p.info["cmdline"])
    ]


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=120)
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def trial_variables(name: str, folder: Path) -> dict[str, str]:
    return {
        "NNI_PLATFORM": "unittest",
        "NNI_TRIAL_JOB_ID": name,
        "NNI_TRIAL_SEQ_ID": "7",
        "NNI_OUTPUT_DIR": str(folder),
        "NNI_TRIAL_COMMAND_CHANNEL": f"http://there/{name}",
    }


def test_a_fork_is_as_good_as_a_process(run: Run, code: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("one", "two"):
        process = run("a", "3", MINE=name, **trial_variables(name, tmp_path))
        found[name] = told(process)
        assert process.returncode == 3
        assert found[name]["mine"] == name
        assert found[name]["trial"] == name
        assert found[name]["channel"] == f"http://there/{name}"
    plain = run("a", "3", warm=False, MINE="one", **trial_variables("one", tmp_path))
    expected = told(plain)
    assert plain.returncode == 3
    changing = ("pid", "parent", "random", "torch")
    assert {k: v for k, v in found["one"].items() if k not in changing} == {
        k: v for k, v in expected.items() if k not in changing
    }
    assert found["one"]["parent"] == found["two"]["parent"]  # the warm process
    for number in ("random", "torch"):
        assert found["one"][number] != found["two"][number]


def test_logs_go_where_nni_wants_them(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        variables = {**trial_variables(name, folder), "NNI_PLATFORM": "local"}
        process = run("a", "0", MINE=name, **variables)
        out, _ = process.communicate(timeout=120)
        assert out == ""  # NNI's log takes it
        log = (folder / "trial.log").read_text()
        assert f'"trial": "{name}"' in log
        assert " PRINT {" in log


def test_an_exception_ends_as_it_does_in_a_process(run: Run) -> None:
    for first in ("fail", "say"):
        warm, plain = run(first), run(first, warm=False)
        _, warm_error = warm.communicate(timeout=120)
        _, plain_error = plain.communicate(timeout=120)
        assert warm.returncode == plain.returncode == 1
        assert warm_error.strip().splitlines()[-1] == plain_error.strip().splitlines()[-1]


def test_threads_are_waited_for(run: Run) -> None:
    process = run("thread")
    out, _ = process.communicate(timeout=120)
    assert out == "late\n"
    assert process.returncode == 0


def waiting(run: Run) -> tuple[subprocess.Popen[str], int]:
    process = run("wait")
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def gone(pid: int) -> bool:
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_killed_command_takes_its_fork_with_it(run: Run) -> None:
    process, pid = waiting(run)
    process.kill()
    process.wait(timeout=30)
    assert gone(pid)


def test_a_killed_fork_ends_its_command(run: Run) -> None:
    process, pid = waiting(run)
    os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=30) == 128 + signal.SIGKILL


def test_nni_stops_a_trial_by_an_interrupt(run: Run) -> None:
    process, pid = waiting(run)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    assert gone(pid)


def test_a_killed_warm_process_is_replaced(run: Run) -> None:
    first = told(run("a", "0"))["parent"]
    process, pid = waiting(run)
    os.kill(first, signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    second = told(run("a", "0"))["parent"]
    assert second not in (first, pid)


def test_where_no_socket_can_be_had_the_trial_runs_all_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = run("a", "5", TMPDIR=str(tmp_path / "absent"), HOME=str(tmp_path))
    found = told(process)
    assert process.returncode == 5
    assert found["argv"] == ["a", "5"]


def test_a_folder_that_others_can_enter_is_not_used(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / f"nni-robust-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    process = run("a", "5", TMPDIR=str(tmp_path))
    out, error = process.communicate(timeout=120)
    assert process.returncode == 5
    assert "is not ours alone" in error
    assert json.loads(out)["argv"] == ["a", "5"]
    assert not list(folder.iterdir())


def test_it_ends_with_what_started_the_trials(code: Path, tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'nni_robust.nni_adapter.warm', 'their_trial', 'a', '0']\n"
        "subprocess.run(command, check=True)\n"
    )
    environment = {**os.environ, "NNI_EXP_ID": "x", "TMPDIR": str(tmp_path), "MINE": ""}
    subprocess.run(
        [sys.executable, "-c", script], cwd=code, env=environment, check=True, timeout=120
    )
    end = time.monotonic() + 30
    while servers(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert [p.name for p in (tmp_path / f"nni-robust-{os.getuid()}").iterdir()] == ["lock"]
