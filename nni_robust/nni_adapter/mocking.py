"""NNI's ``Evaluator.mock_runtime`` after a sequential experiment in the same process.

NNI 3.0's sequential engine puts the trial channel back when a model ends, but not the trial's
parameters (``nni.trial._params``), so ``mock_runtime`` refuses with "Cannot mock trial when trial
APIs are already available" ever after. NNI's own source names the side effect; there is no issue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import nni.trial
from nni.nas.evaluator import Evaluator

__all__ = ["mocked_trial", "trial_parameters_kept"]


@contextlib.contextmanager
def trial_parameters_kept() -> Iterator[None]:
    """Put NNI's global trial parameters back that a sequential run inside leaves changed."""
    parameters, sequence = nni.trial._params, nni.trial._intermediate_seq
    try:
        yield
    finally:
        nni.trial._params, nni.trial._intermediate_seq = parameters, sequence


@contextlib.contextmanager
def mocked_trial(model: Any) -> Iterator[None]:
    """``Evaluator.mock_runtime(model)``, whatever ran in this process before."""
    with trial_parameters_kept():
        nni.trial._params = None
        with Evaluator.mock_runtime(model):
            yield
