"""Settings of the whole suite."""

from __future__ import annotations

import os

import hypothesis

# Two threads of several processes on two cores wait for each other more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# The same examples every time: a failure on one machine is a failure on all. Time limits per
# example would only measure how busy the machine is.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
