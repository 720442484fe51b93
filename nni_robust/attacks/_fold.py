"""Fold batch normalisation into the convolution before it, while a network is only attacked.

In evaluation mode a batch norm is one multiplication and one addition for each channel; done to the
weights once, they cost nothing, and the backward pass need not keep the convolution's output. That
is right only where the batch norm is all that reads this output. Module trees do not tell, so one
forward pass on a few pictures is watched below autograd, where every read of every tensor shows.

Nothing is folded where a pass leaves torch (a number is taken out of a tensor, so that another
picture may take another way), where a tensor outlives the pass, or where the logits with and
without folding differ by more than rounding. A plan holds as long as no module, no hook and no
plain attribute of a module changes: a supernet that switches to another path is watched again.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TOLERANCE", "folded"]

#: Largest allowed difference of the logits, in units of the largest logit.
TOLERANCE = 1e-5
_PICTURES = 8
_FLOATS = (torch.float32, torch.float64)
# What every module has, none of which says where a picture goes; hooks are counted apart.
_MODULE_FIELDS = frozenset(nn.Module().__dict__)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_aten: Any = torch.ops.aten
_LEAVES_TORCH = (_aten._local_scalar_dense.default, _aten.equal.default)
_LEAVES_TORCH_BY_NAME = ("tolist", "numpy", "__array__")

#: A convolution and the batch norm after it.
_Pair = tuple["weakref.ref[nn.Conv2d]", "weakref.ref[_BatchNorm]"]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The pairs of a network, and the structure that they were found in."""

    structure: Any
    pairs: tuple[_Pair, ...]


# The plans must not keep their networks alive, hence weak references on both sides.
_plans: weakref.WeakKeyDictionary[nn.Module, _Plan] = weakref.WeakKeyDictionary()


@contextmanager
def folded(model: nn.Module, pictures: Tensor) -> Iterator[int]:
    """Fold what can be folded; inside, the network computes the same logits up to rounding.

    Everything is put back bit for bit afterwards, also after an exception.

    Parameters
    ----------
    model
        A network in evaluation mode that nobody trains meanwhile.
    pictures
        (N, C, H, W), in the type that the network takes: at most 8 are used to watch a network
        that was not seen before. The global random generators are left as they are.

    Yields
    ------
    int
        Number of folded batch norms; 0 where nothing is safe.
    """
    structure = _structure(model)
    plan = _plans.get(model)
    if plan is None or plan.structure != structure:
        plan = _plans[model] = _Plan(structure, _find(model, pictures[:_PICTURES]))
    with _applied(plan.pairs):
        yield len(plan.pairs)


def _find(model: nn.Module, pictures: Tensor) -> tuple[_Pair, ...]:
    """The pairs that are safe, checked on the pictures; empty if anything is unclear."""
    if len(pictures) == 0 or torch.is_autocast_enabled(pictures.device.type):
        return ()
    devices = [pictures.device] if pictures.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            logits, pairs = _watch(model, pictures)
            if not pairs:
                return ()
            torch.manual_seed(0)
            with _applied(pairs):
                found = model.forward(pictures)
    except Exception:
        # A network that fails here fails in the attack too, and there its own message comes out.
        return ()
    return pairs if _close(logits, found) else ()


def _close(logits: Any, found: Any) -> bool:
    if not isinstance(logits, Tensor) or not isinstance(found, Tensor):
        return False
    if logits.shape != found.shape or logits.numel() == 0 or not torch.isfinite(logits).all():
        return False
    return bool((logits - found).abs().max() <= TOLERANCE * logits.abs().max())


@contextmanager
def _applied(pairs: tuple[_Pair, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for conv_ref, norm_ref in pairs:
            conv, norm = conv_ref(), norm_ref()
            assert conv is not None  # they are parts of a living network of the plan's structure
            assert norm is not None
            weight, bias = _merge(conv, norm)
            stack.callback(setattr, conv.weight, "data", conv.weight.data)
            conv.weight.data = weight
            if conv.bias is None:
                stack.callback(conv._parameters.__setitem__, "bias", None)
                conv._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
            else:
                stack.callback(setattr, conv.bias, "data", conv.bias.data)
                conv.bias.data = bias
            stack.callback(norm.__dict__.pop, "forward", None)
            norm.__dict__["forward"] = _pass
        yield


def _pass(x: Tensor) -> Tensor:
    """Stands for a batch norm whose work the convolution has done."""
    return x


@torch.no_grad()
def _merge(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of both in one, rounded once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    mean = norm.running_mean.double()
    bias = -mean * scale if conv.bias is None else (conv.bias.double() - mean) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    kind = conv.weight.dtype
    return (conv.weight.double() * scale.view(-1, 1, 1, 1)).to(kind), bias.to(kind)


# --- which pairs ---------------------------------------------------------------------------------


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
    if "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS):
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

    def safe(self) -> tuple[_Pair, ...]:
        """The pairs, once the pass is over."""
        alive = {conv for ref, conv in self.outputs.values() if ref() is not None}
        return tuple(
            (weakref.ref(conv), weakref.ref(norm))
            for conv, norm in self.pairs.items()
            if not self.leaves_torch
            and conv not in self.refused
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


def _watch(model: nn.Module, pictures: Tensor) -> tuple[Any, tuple[_Pair, ...]]:
    """The network's output, and the pairs whose first half nothing else reads."""
    convs, norms = _candidates(model)
    if not convs or not norms:
        return None, ()
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
    return logits, reads.safe()


def _structure(model: nn.Module) -> Any:
    """Everything that is cheap to compare and may change which way a picture takes."""
    return [
        (
            name,
            id(module),
            type(module),
            [(key, id(p)) for key, p in module._parameters.items()],
            [len(getattr(module, hooks)) for hooks in _HOOKS] if name else None,
            [(k, _plain(v)) for k, v in module.__dict__.items() if k not in _MODULE_FIELDS],
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return [(_plain(k), _plain(v)) for k, v in value.items()]
    return id(value)
