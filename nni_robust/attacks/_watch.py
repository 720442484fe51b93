"""Find the batch norms that may be folded: watch one forward pass of a network, below autograd.

Module trees do not tell who reads a convolution's output. Operations do: a pair is safe if the
batch norm got the convolution's own output object, each ran once, and nothing else read that
output or the weights, or kept it beyond the pass.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HOOKS", "Pair", "Seen", "watch"]

_FLOATS = (torch.float32, torch.float64)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_aten: Any = torch.ops.aten
_LEAVES_TORCH = (_aten._local_scalar_dense.default, _aten.equal.default)
_LEAVES_TORCH_BY_NAME = ("tolist", "numpy", "__array__")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A convolution, the batch norm after it, and the size of the map between for one picture."""

    conv: weakref.ref[nn.Conv2d]
    norm: weakref.ref[_BatchNorm]
    size: int

    @property
    def weights(self) -> int:
        """Size of the convolution's kernels, of which folding makes a copy."""
        conv = self.conv()
        return 0 if conv is None else conv.weight.numel()


@dataclasses.dataclass(frozen=True)
class Seen:
    """One forward pass.

    Parameters
    ----------
    output
        What the network returned; None where nothing was worth watching.
    pairs
        A convolution and a batch norm each, of whose first half nothing else reads the output.
    norms
        All batch norms that do what their class says, those of the pairs too.
    """

    output: Any = None
    pairs: tuple[Pair, ...] = ()
    norms: tuple[weakref.ref[_BatchNorm], ...] = ()


def _candidates(model: nn.Module) -> tuple[set[nn.Conv2d], set[_BatchNorm]]:
    """Convolutions and batch norms that do what their class says and share nothing with others."""
    users: dict[int, int] = {}
    convs: set[nn.Conv2d] = set()
    norms: set[_BatchNorm] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1
        if isinstance(module, torch.jit.ScriptModule | nn.DataParallel) or hasattr(
            module, "_orig_mod"
        ):
            return set(), set()  # copies or compiled code would not see the changes
        if not _is_plain(module):
            continue
        if isinstance(module, nn.Conv2d) and module.weight.dtype in _FLOATS:
            convs.add(module)
        elif (
            isinstance(module, nn.BatchNorm2d)
            and not module.training
            and module.running_mean is not None
            and module.running_var is not None
        ):
            norms.add(module)
    alone = {c for c in convs if all(users[id(p)] == 1 for p in c.parameters(recurse=False))}
    return alone, norms


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module is calling torch's own forward, and its weights are its own."""
    if "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in HOOKS):
        return False
    cls: Any = type(module)
    if isinstance(module, nn.Conv2d):
        own = cls.forward is nn.Conv2d.forward and cls._conv_forward is nn.Conv2d._conv_forward
        # A parametrised weight is computed anew at each use.
        return own and "weight" in module._parameters and "bias" in module._parameters
    return isinstance(module, nn.BatchNorm2d) and cls.forward is _BatchNorm.forward


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation: who reads a convolution's output or weights; do numbers leave torch."""

    def __init__(self, convs: set[nn.Conv2d]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {id(p): conv for conv in convs for p in conv.parameters(recurse=False)}
        self.running: nn.Module | None = None
        self.outputs: dict[int, tuple[weakref.ref[Tensor], nn.Conv2d]] = {}
        self.inside: nn.Module | None = None
        self.calls: dict[nn.Module, int] = {}
        self.sizes: dict[nn.Module, int] = {}
        self.pairs: dict[nn.Conv2d, _BatchNorm] = {}
        self.refused: set[nn.Module] = set()
        self.leaves_torch = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.leaves_torch |= func in _LEAVES_TORCH
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                conv = self.source(tensor) if self.inside is None else None
                if conv is not None:
                    self.refused.add(conv)
                owner = self.weights.get(id(tensor))
                if owner is not None and owner is not self.running:
                    self.refused.add(owner)
        return func(*args, **kwargs)

    def source(self, tensor: Any) -> nn.Conv2d | None:
        """The convolution whose output this very tensor is."""
        ref, conv = self.outputs.get(id(tensor), (None, None))
        return conv if ref is not None and ref() is tensor else None

    def before_conv(self, module: nn.Module, inputs: Any) -> None:
        self.running = module

    def after_conv(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        self.running = None
        self.calls[module] = self.calls.get(module, 0) + 1
        self.sizes[module] = output.numel() // max(1, len(output))
        self.outputs[id(output)] = (weakref.ref(output), module)

    def before_norm(self, module: nn.Module, inputs: Any) -> None:
        assert isinstance(module, _BatchNorm)
        self.calls[module] = self.calls.get(module, 0) + 1
        conv = self.source(inputs[0]) if len(inputs) == 1 else None
        if conv is not None:
            if conv in self.pairs:
                self.refused.add(conv)
            self.pairs[conv] = module
            self.inside = module

    def after_norm(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.inside = None

    def safe(self) -> tuple[Pair, ...]:
        """The pairs, once the pass is over."""
        alive = {conv for ref, conv in self.outputs.values() if ref() is not None}
        return tuple(
            Pair(weakref.ref(conv), weakref.ref(norm), self.sizes[conv])
            for conv, norm in self.pairs.items()
            if conv not in self.refused
            and conv not in alive
            and self.calls[conv] == self.calls[norm] == 1
            and conv.out_channels == norm.num_features
        )


class _Exits(TorchFunctionMode):
    """Notices what reads a tensor's memory without an operation of torch."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _LEAVES_TORCH_BY_NAME:
            self.reads.leaves_torch = True
        return func(*args, **(kwargs or {}))


def watch(model: nn.Module, pictures: Tensor) -> Seen:
    """Run the network once, and see which batch norms may be replaced; none if that is unclear."""
    convs, norms = _candidates(model)
    if not norms:
        return Seen()
    reads = _Reads(convs)
    handles: list[Any] = [conv.register_forward_pre_hook(reads.before_conv) for conv in convs]
    handles += [conv.register_forward_hook(reads.after_conv) for conv in convs]
    handles += [norm.register_forward_pre_hook(reads.before_norm) for norm in norms]
    handles += [norm.register_forward_hook(reads.after_norm) for norm in norms]
    try:
        with _Exits(reads), reads:
            # Not model(…): hooks on the whole network, such as a counter of passes, are not asked.
            logits = model.forward(pictures)
    finally:
        for handle in handles:
            handle.remove()
    if reads.leaves_torch:
        return Seen(logits)
    # In the order of their calls, for a set has none.
    used = (module for module in reads.calls if isinstance(module, _BatchNorm))
    return Seen(logits, reads.safe(), tuple(map(weakref.ref, used)))
