"""The source of a forward method, from the two traces of it."""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_robust.errors import UserError

from ._trace import BATCHES, Call, Trace

__all__ = ["forward_source", "module_path"]

_OPERATORS = {
    "__add__": "+",
    "add": "+",
    "__sub__": "-",
    "sub": "-",
    "__mul__": "*",
    "mul": "*",
    "__truediv__": "/",
    "div": "/",
    "__matmul__": "@",
    "matmul": "@",
}
_REFLECTED = {"__radd__": "+", "__rsub__": "-", "__rmul__": "*", "__rtruediv__": "/"}
_IN_PLACE = {"__iadd__": "+=", "__isub__": "-=", "__imul__": "*=", "__itruediv__": "/="}
_TAKEN = {"self", "torch", "nn", "F", "math", "super", "range", "len"}


def module_path(root: nn.Module, path: str) -> str:
    """How `root`'s own methods write a sub-module: ``"cells.0"`` is ``"self.cells[0]"``."""
    text, module = "self", root
    for atom in path.split("."):
        if type(module) is nn.ModuleDict:
            text += f"[{atom!r}]"
        elif isinstance(module, (nn.ModuleList, nn.Sequential)):
            text += f"[{list(module._modules).index(atom)}]"
        elif atom.isidentifier() and not keyword.iskeyword(atom):
            text += f".{atom}"
        else:
            text = f"{text}.get_submodule({atom!r})"
        module = module.get_submodule(atom)
    return text


def forward_source(module: nn.Module, traces: Sequence[Trace]) -> list[str]:
    """Lines of ``def forward``, not indented.

    Raises
    ------
    UserError
        If something in it has no place in plain PyTorch source.
    """
    return _Writer(module, traces).lines()


class _Writer:
    """Names tensors as they appear, and writes one line for each call."""

    def __init__(self, module: nn.Module, traces: Sequence[Trace]) -> None:
        self.module, self.traces = module, traces
        self.names: list[dict[int, str]] = [{}, {}]  # of tensors, for each of the two runs
        self.lists: dict[str, int] = {}  # lengths of named lists of tensors
        self.used: set[str] = set(_TAKEN)
        self.batch = ""
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if "." in name:
                owner, _, own = name.rpartition(".")
                name = f"{module_path(module, owner)}.{own}"
            else:
                name = f"self.{name}"
            for names in self.names:
                names[id(tensor)] = name

    def lines(self) -> list[str]:
        parameters = list(inspect.signature(type(self.module).forward).parameters)[1:]
        arguments = list(zip(*(trace.args for trace in self.traces), strict=True))
        names = parameters[: len(arguments)]
        lines = [f"def forward({', '.join(['self', *names])}):"]
        for name, values in zip(names, arguments, strict=True):
            self.used.add(name)
            self._bind(name, values)
        calls = zip(*(trace.calls for trace in self.traces), strict=True)
        lines += [f"    {self._line(pair)}" for pair in calls]
        result = self._text(tuple(trace.result for trace in self.traces))
        if lines[-1].startswith(f"    {result} = "):
            result = lines.pop().removeprefix(f"    {result} = ")
        return [*lines, f"    return {result}"]

    def _bind(self, name: str, values: tuple[Any, ...]) -> None:
        """Give a value of the two runs a name, or its elements theirs."""
        if isinstance(values[0], Tensor):
            for names, value in zip(self.names, values, strict=True):
                names[id(value)] = name
            if not self.batch and values[0].shape[:1] == (BATCHES[0],):
                self.batch = f"{name}.shape[0]"
        elif isinstance(values[0], (list, tuple)):
            self.lists[name] = len(values[0])
            for index, elements in enumerate(zip(*values, strict=True)):
                self._bind(f"{name}[{index}]", elements)

    def _line(self, calls: tuple[Call, ...]) -> str:
        call = calls[0]
        word = call.target if isinstance(call.target, str) else call.target.__name__
        if word in _IN_PLACE and isinstance(call.result, Tensor):
            own, other = (self._text(tuple(c.args[i] for c in calls)) for i in (0, 1))
            return f"{own} {_IN_PLACE[word]} {other}"
        text = self._call(calls)
        name = self._fresh(word)
        self._bind(name, tuple(c.result for c in calls))
        return f"{name} = {text}"

    def _fresh(self, word: str) -> str:
        """A name that is not taken yet."""
        base = re.sub(r"\W", "_", "_".join(word.strip("_").split(".")[-2:]))
        base = base if base.isidentifier() and not keyword.iskeyword(base) else f"m_{base}"
        name, number = base, 1
        while name in self.used:
            number += 1
            name = f"{base}_{number}"
        self.used.add(name)
        return name

    def _call(self, calls: tuple[Call, ...]) -> str:
        target = calls[0].target
        if not isinstance(target, str) and target.__name__ == "__getitem__":
            own, index = (tuple(c.args[i] for c in calls) for i in (0, 1))
            return f"{self._text(own)}[{self._index(index)}]"
        args = [self._text(values) for values in zip(*(c.args for c in calls), strict=True)]
        keys = list(calls[0].kwargs)
        kwargs = [f"{key}={self._text(tuple(c.kwargs[key] for c in calls))}" for key in keys]
        listed = ", ".join([*args, *kwargs])
        if isinstance(target, str):
            return f"{module_path(self.module, target)}({listed})"
        word = target.__name__
        if len(args) == 2 and not kwargs and word in _OPERATORS:
            return f"{args[0]} {_OPERATORS[word]} {args[1]}"
        if word in _REFLECTED:
            return f"{args[1]} {_REFLECTED[word]} {args[0]}"
        if word == "__get__":
            return f"{args[0]}.{target.__self__.__name__}"
        for home, where in (("torch", torch), ("F", F)):
            if getattr(where, word, None) is target:
                return f"{home}.{word}({listed})"
        if getattr(Tensor, word, None) is target or word in vars(torch._C.TensorBase):
            return f"{args[0]}.{word}({', '.join([*args[1:], *kwargs])})"
        raise self._refused(f"{getattr(target, '__module__', '')}.{word}")

    def _index(self, values: tuple[Any, ...]) -> str:
        if isinstance(values[0], tuple) and values[0]:
            inner = [self._index(parts) for parts in zip(*values, strict=True)]
            return ", ".join(inner) + ("," if len(inner) == 1 else "")
        if isinstance(values[0], slice):
            parts = [
                tuple(getattr(value, part) for value in values)
                for part in ("start", "stop", "step")
            ]
            texts = ["" if part[0] is None else self._text(part) for part in parts]
            return ":".join(texts if texts[2] else texts[:2])
        return "..." if values[0] is Ellipsis else self._text(values)

    def _text(self, values: tuple[Any, ...]) -> str:
        """Source of a value, given what it was in the two runs."""
        value = values[0]
        if isinstance(value, Tensor):
            name = self.names[0].get(id(value))
            if name is None or any(
                names.get(id(v)) != name for names, v in zip(self.names, values, strict=True)
            ):
                raise self._refused("a tensor that is neither a parameter nor a buffer")
            return name
        if isinstance(value, (list, tuple)):
            texts = [self._text(parts) for parts in zip(*values, strict=True)]
            whole = texts[0].removesuffix("[0]") if texts else ""
            if self.lists.get(whole) == len(texts) and texts == [
                f"{whole}[{i}]" for i in range(len(texts))
            ]:
                return whole
            if isinstance(value, list):
                return f"[{', '.join(texts)}]"
            return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"
        if type(value) is int and values[0] != values[1]:
            factor, rest = divmod(value, BATCHES[0])
            if rest or values[1] != factor * BATCHES[1] or not self.batch:
                raise self._refused(f"the number {value}, which changes with the batch size")
            return self.batch if factor == 1 else f"{factor} * {self.batch}"
        if values[0] != values[1]:
            raise self._refused(f"{value!r}, which changes with the batch size")
        return _constant(value, self._refused)

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"no standalone file can be made: {type(self.module).__name__} uses {what}"
        )


def _constant(value: Any, refused: Callable[[str], UserError]) -> str:
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
    if isinstance(value, (torch.dtype, torch.memory_format)):
        return str(value)
    raise refused(f"a value of type {type(value).__name__}")
