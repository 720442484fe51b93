"""Networks through ``torch.compile``, for attacks on one architecture that go on for long.

What is compiled is the network as the attack holds it: frozen, folded, channels-last. The result is
kept as long as the network lives; torch compiles anew by itself where the size of the batch, the
precision or the structure changes. The first logits of each network and size are compared with
those of the network itself: a compiler that is wrong must not decide what counts as robust.
"""

from __future__ import annotations

import os
import shutil
import warnings
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.attacks._hooks import has_hooks
from nni_robust.errors import UserError

__all__ = ["compiled", "need_compiler"]

#: Largest allowed difference of the logits in units of the largest; rounding of float32 is 1e-5.
_TOLERANCE = {True: 0.1, False: 1e-3}  # by whether autocast is on
_COMPILERS = ("g++", "clang++", "c++")

_forms: weakref.WeakKeyDictionary[nn.Module, tuple[Any, dict[Any, bool]]]
_forms = weakref.WeakKeyDictionary()


def compiled(model: nn.Module, pictures: Tensor) -> Callable[[Tensor], Tensor]:
    """The network's compiled form, or the network where there is none; a warning says why.

    Parameters
    ----------
    model
        The network, held as it will be attacked.
    pictures
        (N, C, H, W), a batch like those to come, under the autocast of those to come.

    Raises
    ------
    UserError
        If there is no C++ compiler.
    """
    need_compiler()
    if has_hooks(model):
        # They are the caller's Python: compiled once, they would not run again as they should.
        warnings.warn("compile: not used, the network has forward hooks", stacklevel=4)
        return model
    call, checked = _forms.get(model, (None, {}))
    if call is None:
        # The network is an argument, so that the compiled form does not keep it alive.
        # Code of its own, for torch counts per code object and compiles no more after eight.
        own = FunctionType(_forward.__code__.replace(), globals())
        call, checked = torch.compile(own), {}
        _forms[model] = call, checked
    cast = torch.is_autocast_enabled(pictures.device.type)
    key = (tuple(pictures.shape), pictures.dtype, cast)
    if key not in checked:
        leaf = pictures.detach().clone().requires_grad_()
        found = call(model, leaf).detach()
        with torch.no_grad():
            expected = model(pictures)
        limit = _TOLERANCE[cast] * float(expected.abs().max())
        checked[key] = float((found - expected).abs().max()) <= limit
        if not checked[key]:
            warnings.warn("compile: not used, the compiled network's logits differ", stacklevel=4)
    return (lambda x: call(model, x)) if checked[key] else model


def _forward(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def need_compiler() -> None:
    """Raise a UserError if there is no C++ compiler."""
    given = os.environ.get("CXX")
    names = (given,) if given else _COMPILERS
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"compile: True needs a C++ compiler, and {' or '.join(names)} is not on the PATH "
            "(Debian: apt install g++); without compile it works without one"
        )
