"""What a module's forward does: the functions and sub-modules that it calls, in order.

The forward runs once for each of two batch sizes, on the meta device, so that nothing is computed.
Python decides what it always decides (lengths, None, loops), and only calls on tensors are written
down. Where a number differs between the two runs it comes from the batch size, and is written as
such.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nni_robust.errors import UserError

__all__ = ["BATCHES", "Call", "Trace", "is_layer", "trace_network"]

#: The two batch sizes.
BATCHES = (2, 3)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call in a forward.

    Parameters
    ----------
    target
        A function or method of torch, or the path of a sub-module.
    args, kwargs
        Its arguments, tensors included.
    result
        What it gave: a tensor, or a list or tuple of tensors.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclasses.dataclass(frozen=True)
class Trace:
    """One run of one module's forward: its arguments, its calls, its result."""

    args: tuple[Any, ...]
    calls: list[Call]
    result: Any


def is_layer(module: nn.Module) -> bool:
    """Whether it is a layer of torch's own, such as a convolution."""
    return type(module).__module__.startswith("torch.nn.") and not any(module.children())


def trace_network(network: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, list[Trace]]:
    """The traces of a network and of every module that it calls, one per batch size.

    Parameters
    ----------
    network
        On the meta device, in evaluation mode.
    input_shape
        (C, H, W) of its pictures.

    Returns
    -------
    dict[str, list[Trace]]
        By path of the module, ``""`` is the network. Layers of torch, which need no forward, have
        none.

    Raises
    ------
    UserError
        If a module is called with keyword arguments, or in two ways.
    """
    runs = [_run(network, torch.zeros(n, *input_shape, device="meta")) for n in BATCHES]
    paths = {id(module): path for path, module in network.named_modules()}
    found: dict[str, list[Trace]] = {}
    for number in runs[0]:
        path = paths[number]
        # A module that is called again must do the same again.
        steps = [[call.target for call in trace.calls] for trace in runs[0][number]]
        if any(step != steps[0] for step in steps):
            raise UserError(f"module '{path}' is called in two ways, which has no standalone file")
        found[path] = [run[number][0] for run in runs]
    return found


def is_sequential(module: nn.Module) -> bool:
    """Whether its forward is that of ``nn.Sequential``, whatever its class."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _run(network: nn.Module, pictures: Tensor) -> dict[int, list[Trace]]:
    """One run of a network: the traces of its modules by their ids, one for each time called."""
    recorder = _Recorder()
    with contextlib.ExitStack() as stack, torch.no_grad():
        for module in network.modules():
            stack.enter_context(_watched(module, recorder))
        with recorder:
            network(pictures)
    return recorder.traces


@contextlib.contextmanager
def _watched(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Calls of a module are written down as such, apart from what happens in them."""
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        return recorder.call_module(module, forward, args, kwargs)

    module.forward = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


class _Frame:
    """A forward that is running."""

    def __init__(self, module: nn.Module) -> None:
        self.paths = {id(child): path for path, child in module.named_modules()}
        self.calls: list[Call] = []


class _Recorder(TorchFunctionMode):
    """Writes down what the forwards that are running call, each apart from those below it."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: dict[int, list[Trace]] = {}
        #: None stands for what needs no forward of its own: a layer, a function of torch.
        self.frames: list[_Frame | None] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        frame = self.frames[-1] if self.frames else None
        kept, options = _copied(args), dict(kwargs or {})
        result = self._below(None, func, args, options)
        return result if frame is None else _told(frame, func, kept, options, result)

    def call_module(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module's forward; the one that called it knows only that it did."""
        above = self.frames[-1] if self.frames else None
        if above is None and self.frames:
            return forward(*args, **kwargs)
        kept = _copied(args)  # before the forward adds to a list that it passed
        if is_layer(module):
            result = self._below(None, forward, args, kwargs)
        elif kwargs:
            name = type(module).__name__
            raise UserError(f"{name} is called with keywords, which has no standalone file")
        else:
            own, frame = tuple(_apart(arg) for arg in args), _Frame(module)
            result = self._below(frame, forward, own, {})
            trace = Trace(own, frame.calls, _copied(result))
            self.traces.setdefault(id(module), []).append(trace)
        if above is None:
            return result
        if id(module) not in above.paths:
            raise UserError(
                f"a {type(module).__name__} is called by a module that it is no part of, which has "
                "no standalone file"
            )
        if isinstance(result, Tensor):
            result = _apart(result)  # what an identity gives has a name of its own, too
        return _told(above, above.paths[id(module)], kept, kwargs, result)

    def _below(
        self,
        frame: _Frame | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self.frames.append(frame)
        try:
            return function(*args, **kwargs)
        finally:
            self.frames.pop()


def _told(
    frame: _Frame, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    """Write a call down if tensors came out of it; its result."""
    if isinstance(result, Tensor) or (
        isinstance(result, (list, tuple)) and any(isinstance(r, Tensor) for r in result)
    ):
        frame.calls.append(Call(target, args, kwargs, _copied(result)))
    return result


def _apart(value: Any) -> Any:
    """The same value, every tensor an object of its own, so that it can have a name of its own."""
    if type(value) in (list, tuple):
        return type(value)(_apart(inner) for inner in value)
    with torch._C.DisableTorchFunction():
        return value.detach() if isinstance(value, Tensor) else value


def _copied(value: Any) -> Any:
    """The same tensors in lists and tuples of their own."""
    if type(value) in (list, tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
