"""Which trial a process reports for, also one that the trial started anew.

A distributed training by ``spawn`` reports from new processes, where NNI knows no parameters and so
refuses reports. The trial tells them the number of its own.
"""

from __future__ import annotations

import nni.trial

__all__ = ["adopt", "parameter_id"]


def parameter_id() -> int | None:
    """Number of this trial's parameters; None outside of a trial."""
    record = nni.trial._params
    return None if record is None else int(record["parameter_id"])


def adopt(number: int | None) -> None:
    """Report for the trial with these parameters, where this process knows of none."""
    if number is not None and nni.trial._params is None:
        nni.trial._params = {"parameter_id": number, "parameters": {}}
