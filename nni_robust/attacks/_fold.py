"""Fold batch normalisation into the convolution before it, while a network is only attacked.

In evaluation mode a batch norm is one multiplication and one addition for each channel; done to the
weights once, they cost nothing, and the backward pass need not keep the convolution's output. That
is right only where the batch norm is all that reads this output. Module trees do not tell, so one
forward pass on a few pictures is watched below autograd, where every read of every tensor shows.
Other batch norms are computed as :class:`Affine`.

Nothing is changed where a pass leaves torch (a number is taken out of a tensor, so that another
picture may take another way), or where that makes the logits differ by more than rounding; nothing
is folded whose map outlives the pass. A plan holds as long as no module, no hook and no
plain attribute of a module changes: a supernet that switches to another path is watched again.

What "rounding" is depends on weights, and so on when a plan is made. A training that goes on after
an interruption must fold what it folded before; inside :func:`whatever_rounds` it is float64 that
decides, where the difference is either nothing or a mistake.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_robust.attacks._affine import Affine, scale_and_shift
from nni_robust.attacks._pointwise import Pointwise
from nni_robust.attacks._watch import HOOKS, Pair, Seen, watch

__all__ = ["TOLERANCE", "folded", "whatever_rounds"]

#: Largest allowed difference of the logits, in units of the largest logit.
TOLERANCE = 1e-5
#: The same in float64.
DOUBLE_TOLERANCE = 1e-9
_PICTURES, _DOUBLE_PICTURES = 8, 2
# Weights that together take so small a share of the maps' memory are light.
_LIGHT = 0.1
# What every module has, none of which says where a picture goes; hooks are counted apart.
_MODULE_FIELDS = frozenset(nn.Module().__dict__)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What may be replaced in a network, and the structure that it was found in."""

    structure: Any
    pairs: tuple[Pair, ...]
    norms: tuple[weakref.ref[_BatchNorm], ...]
    #: Whether the logits with and without it agree: in float64 (True), as computed (False).
    agrees: dict[bool, bool] = dataclasses.field(default_factory=dict)


# The plans must not keep their networks alive, hence weak references on both sides.
_plans: weakref.WeakKeyDictionary[nn.Module, _Plan] = weakref.WeakKeyDictionary()
_in_float64: ContextVar[bool] = ContextVar("_in_float64", default=False)


@contextmanager
def whatever_rounds() -> Iterator[None]:
    """Inside, whether a network is folded depends on its structure alone, not on its weights.

    Networks that cannot compute in float64 are not folded then.
    """
    token = _in_float64.set(True)
    try:
        yield
    finally:
        _in_float64.reset(token)


@contextmanager
def folded(
    model: nn.Module,
    pictures: Tensor,
    *,
    thrifty: bool = False,
    eager: bool = True,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Iterator[int]:
    """Fold what can be folded; inside, the network computes the same logits up to rounding.

    Everything is put back bit for bit afterwards, also after an exception.

    Parameters
    ----------
    model
        A network in evaluation mode that nobody trains meanwhile.
    pictures
        (N, C, H, W), in the type that the network takes: at most 8 are used to watch a network
        that was not seen before. The global random generators are left as they are.
    thrifty
        Leave pairs as they are whose folded weights take more memory than the map between, unless
        all weights together are light.
    eager
        Compute 1x1 convolutions by :class:`Pointwise` and batch norms that stay by :class:`Affine`.
        A compiler would not take these for the same each time, and compile anew for every batch.
    memory_format
        Of the folded weights.

    Yields
    ------
    int
        Number of folded batch norms; 0 where nothing is safe, and under autocast.
    """
    if len(pictures) == 0 or torch.is_autocast_enabled(pictures.device.type):
        yield 0
        return
    structure, double = _structure(model), _in_float64.get()
    plan, logits = _plans.get(model), None
    if plan is None or plan.structure != structure:
        seen = _find(model, pictures[:_PICTURES])
        plan, logits = _Plan(structure, seen.pairs, seen.norms), seen.output
        _plans[model] = plan
    if double not in plan.agrees:
        known = None if double else logits
        plan.agrees[double] = _agree(model, pictures[:_PICTURES], plan, known, double=double)
    if not plan.agrees[double]:
        yield 0
        return
    pairs = plan.pairs
    if thrifty:
        maps = len(pictures) * sum(pair.size for pair in pairs)
        if sum(pair.weights for pair in pairs) > _LIGHT * maps:
            pairs = tuple(pair for pair in pairs if pair.weights <= pair.size * len(pictures))
    with _applied(pairs, plan.norms, memory_format, eager=eager):
        yield len(pairs)


@contextmanager
def _aside(pictures: Tensor) -> Iterator[None]:
    """No gradients, and random numbers that nobody else misses."""
    devices = [pictures.device] if pictures.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def _find(model: nn.Module, pictures: Tensor) -> Seen:
    """What a pass shows; nothing if anything is unclear."""
    try:
        with _aside(pictures):
            return watch(model, pictures)
    except Exception:
        # A network that fails here fails in the attack too, and there its own message comes out.
        return Seen()


def _agree(model: nn.Module, x: Tensor, plan: _Plan, logits: Any, *, double: bool) -> bool:
    """Whether the network has the same logits with and without the plan, which may be known."""
    if not plan.norms:
        return False
    try:
        with _doubled(model) if double else nullcontext():
            x = x[:_DOUBLE_PICTURES].double() if double else x
            if logits is None:
                with _aside(x):
                    logits = model.forward(x)
            with _aside(x), _applied(plan.pairs, plan.norms):
                found = model.forward(x)
    except Exception:
        return False
    return _close(logits, found, DOUBLE_TOLERANCE if double else TOLERANCE)


def _close(logits: Any, found: Any, tolerance: float) -> bool:
    if not isinstance(logits, Tensor) or not isinstance(found, Tensor):
        return False
    if logits.shape != found.shape or logits.numel() == 0 or not torch.isfinite(logits).all():
        return False
    return bool((logits - found).abs().max() <= tolerance * logits.abs().max())


@contextmanager
def _doubled(model: nn.Module) -> Iterator[None]:
    """Inside, all weights and buffers are other ones, of the same values in float64.

    Their own memory is not touched: a change of type would take DDP's hooks off them.
    """
    doubles: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for module in model.modules():
            sources: Any = (module._parameters, module._buffers)
            for tensors in sources:
                for name, tensor in tensors.items():
                    if tensor is None or not tensor.is_floating_point():
                        continue
                    double = doubles.get(id(tensor))
                    if double is None:
                        double = tensor.detach().double()
                        if isinstance(tensor, nn.Parameter):
                            double = nn.Parameter(double, requires_grad=False)
                        doubles[id(tensor)] = double
                    stack.callback(tensors.__setitem__, name, tensor)
                    tensors[name] = double
        yield


@contextmanager
def _applied(
    pairs: tuple[Pair, ...],
    norms: tuple[weakref.ref[_BatchNorm], ...],
    memory_format: torch.memory_format = torch.preserve_format,
    *,
    eager: bool = True,
) -> Iterator[None]:
    with ExitStack() as stack:
        folded_away = {pair.norm for pair in pairs}
        for ref in norms if eager else ():
            if ref not in folded_away:
                norm = ref()
                assert norm is not None  # parts of a living network of the plan's structure
                stack.callback(norm.__dict__.pop, "forward", None)
                norm.__dict__["forward"] = Affine(norm)
        for pair in pairs:
            conv, norm = pair.conv(), pair.norm()
            assert conv is not None
            assert norm is not None
            weight, bias = _merge(conv, norm)
            weight = weight.to(memory_format=memory_format)
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
            if eager and Pointwise.suits(conv):
                stack.callback(conv.__dict__.pop, "forward", None)
                conv.__dict__["forward"] = Pointwise(conv)
        yield


def _pass(x: Tensor) -> Tensor:
    """Stands for a batch norm whose work the convolution has done."""
    return x


@torch.no_grad()
def _merge(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of both in one, rounded once."""
    scale, bias = scale_and_shift(norm)
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    kind = conv.weight.dtype
    return (conv.weight.double() * scale.view(-1, 1, 1, 1)).to(kind), bias.to(kind)


def _structure(model: nn.Module) -> Any:
    """Everything that is cheap to compare and may change which way a picture takes."""
    return [
        (
            name,
            id(module),
            type(module),
            [(key, id(p)) for key, p in module._parameters.items()],
            [len(getattr(module, hooks)) for hooks in HOOKS] if name else None,
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
