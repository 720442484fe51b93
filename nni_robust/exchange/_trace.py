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
        By path of the module, ``""`` is the network. Layers of torch and ``nn.Sequential``, which
        need no forward, have none.

    Raises
    ------
    UserError
        If a module is called with keyword arguments, or in two ways.
    """
    found: dict[str, list[Trace]] = {}
    paths = {id(module): path for path, module in network.named_modules()}
    runs = [_trace(network, (torch.zeros(n, *input_shape, device="meta"),)) for n in BATCHES]
    waiting: list[tuple[nn.Module, list[Trace]]] = [(network, runs)]
    while waiting:
        module, traces = waiting.pop()
        path = paths[id(module)]
        if path in found:
            if [c.target for c in found[path][0].calls] != [c.target for c in traces[0].calls]:
                raise UserError(f"module '{path}' is called in two ways, which has no standalone")
            continue
        found[path] = traces
        for calls in zip(*(trace.calls for trace in traces), strict=True):
            if isinstance(calls[0].target, str):
                child = module.get_submodule(calls[0].target)
                waiting += _called(child, [call.args for call in calls])
    return found


def _called(
    module: nn.Module, inputs: list[tuple[Any, ...]]
) -> Iterator[tuple[nn.Module, list[Trace]]]:
    """The modules that need a forward, in a module called with these inputs."""
    if is_layer(module):
        return
    if not is_sequential(module):
        yield module, [_trace(module, args) for args in inputs]
        return
    for child in module.children():
        yield from _called(child, inputs)
        inputs = [(child(*args),) for args in inputs]


def is_sequential(module: nn.Module) -> bool:
    """Whether its forward is that of ``nn.Sequential``, whatever its class."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _trace(module: nn.Module, args: tuple[Any, ...]) -> Trace:
    args = tuple(_apart(arg) for arg in args)
    recorder = _Recorder()
    with contextlib.ExitStack() as stack, torch.no_grad():
        for path, child in module.named_modules():
            if path:
                stack.enter_context(_watched(child, path, recorder))
        with recorder:
            result = module.forward(*args)
    return Trace(args, recorder.calls, result)


def _apart(value: Any) -> Any:
    """The same value, every tensor an object of its own, so that it can have a name of its own."""
    if isinstance(value, (list, tuple)):
        return type(value)(_apart(inner) for inner in value)
    return value.detach() if isinstance(value, Tensor) else value


def _copied(value: Any) -> Any:
    """The same tensors in lists and tuples of their own."""
    if type(value) in (list, tuple):
        return type(value)(_copied(inner) for inner in value)
    return value


@contextlib.contextmanager
def _watched(module: nn.Module, path: str, recorder: _Recorder) -> Iterator[None]:
    """Calls of a module are written down as such, and not what happens in them."""
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        if recorder.inside:
            return forward(*args, **kwargs)
        return recorder.call(path, forward, args, kwargs)

    module.forward = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


class _Recorder(TorchFunctionMode):
    """Writes down what is called, outside of calls that are written down already."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.inside = False

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.inside:
            return func(*args, **(kwargs or {}))
        return self.call(func, func, args, dict(kwargs or {}))

    def call(
        self, target: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Do the call; it is written down if tensors come out of it."""
        kept = _copied(args)  # before the forward adds to a list that it passed
        self.inside = True
        try:
            result = function(*args, **kwargs)
            if isinstance(target, str) and any(result is arg for arg in args):
                result = _apart(result)  # an identity
        finally:
            self.inside = False
        if isinstance(result, Tensor) or (
            isinstance(result, (list, tuple)) and any(isinstance(r, Tensor) for r in result)
        ):
            self.calls.append(Call(target, kept, kwargs, _copied(result)))
        return result
