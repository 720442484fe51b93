"""Notice when a forward pass computes gradients of its own.

AutoAttack looks for such networks with a trace hook on every Python call. Here the few functions
through which PyTorch starts a gradient are replaced for the time of one pass, in this thread's
view only. Calls into the engine from C++ extensions are not seen.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = ["gradient_calls"]

# All of torch.autograd.grad, torch.autograd.backward and Tensor.backward, however they were
# imported, and torch.func come through the first; the second is forward mode.
_ENTRIES = ((torch.autograd, "_engine_run_backward"), (forward_ad, "enter_dual_level"))
_OLDER = ((torch.autograd, "grad"), (torch.autograd, "backward"))
_LOCK = threading.Lock()


@contextlib.contextmanager
def gradient_calls() -> Iterator[list[str]]:
    """A list that names each gradient which this thread starts inside the ``with`` block."""
    calls: list[str] = []
    here = threading.get_ident()

    def watched(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == here:
                calls.append(name)
            return function(*args, **kwargs)

        return call

    entries = _ENTRIES if hasattr(torch.autograd, "_engine_run_backward") else _OLDER
    with _LOCK:  # two threads that put functions back in another order would leave one of ours
        kept = [(owner, name, getattr(owner, name)) for owner, name in entries]
        try:
            for owner, name, function in kept:
                setattr(owner, name, watched(name, function))
            yield calls
        finally:
            for owner, name, function in kept:
                setattr(owner, name, function)
