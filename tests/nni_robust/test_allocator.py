"""Freed memory stays in our own processes; where others decide about memory, nothing is changed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from nni_robust._allocator import keep_freed_memory
from nni_robust.cli import _main

GLIBC = platform.libc_ver()[0] == "glibc"

#: Takes and frees sixteen blocks of 4 MiB, ten times; prints what was said and the pages fetched.
STEPS = """
import resource
import torch
from nni_robust._allocator import keep_freed_memory
told = {call}

def step():
    return [torch.ones(1 << 20) for _ in range(16)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(call: str, **environment: str) -> tuple[str, int]:
    """What a new process says, and how many pages the kernel gave it in the steps."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS.format(call=call)],
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    told, number = done.stdout.split()
    return told, int(number)


@pytest.mark.skipif(not GLIBC, reason="another libc than glibc")
def test_steps_fetch_no_pages() -> None:
    # The smallest thresholds: every block comes from the kernel, and goes back to it.
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    told, fetched = pages("keep_freed_memory()", **small)
    assert told == "False"  # whoever sets these knows better
    assert fetched > 10 * 16 * 1000 / 2  # some kernels give pages of more than 4 KiB
    told, fetched = pages("keep_freed_memory()")
    assert told == "True"
    assert fetched < 200


@pytest.mark.parametrize("name", ["MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_user_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory() is False


@pytest.mark.parametrize(
    ("arguments", "given", "told"),
    [
        (["archs", "none"], False, True),
        (["archs", "none"], True, False),  # from Python: the process is its owner's
        (["bench", "overhead", "--trials", "1"], False, False),  # refused; rivals run as they come
    ],
)
def test_only_the_command_decides(
    arguments: list[str], given: bool, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(_main, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(sys, "argv", ["nni-robust", *arguments])
    _main.main(arguments if given else None)
    assert bool(calls) == told
