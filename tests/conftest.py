"""Settings of the whole suite."""

from __future__ import annotations

import os

# Two threads of several processes on two cores wait for each other more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
