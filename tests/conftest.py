"""Settings of the whole suite."""

from __future__ import annotations

import os
import random
import shutil
import signal
import zlib

import hypothesis
import pytest

# Two threads of several processes on two cores wait for each other more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time: a failure on one machine is a failure on all. Time limits per
# example would only measure how busy the machine is.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _same_draws(request: pytest.FixtureRequest) -> None:
    """Seed what a test draws, by its name, for the same reason; TEST_SEED=1 and so on draw anew."""
    import numpy as np  # not before the number of threads is set
    import torch

    seed = zlib.crc32(f"{os.environ.get('TEST_SEED', '0')} {request.node.nodeid}".encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (NNI's tuners draw from it)
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium.

    Without one the tests that need it are skipped, and say so; where the variable CI is set they
    fail instead.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = f"no Chromium: none of {', '.join(names)} is on the PATH"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI is set")
        pytest.skip(reason)
    return found
