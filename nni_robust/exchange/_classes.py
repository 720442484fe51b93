"""The source of a network's classes.

Modules of equal source up to numbers share a class, whose constructor takes the numbers that
differ; so the file reads like one written by hand, and not like 2,000 layers in a row.
"""

from __future__ import annotations

import dataclasses
import inspect
import keyword
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nni_robust.errors import UserError

from ._forward import forward_source
from ._trace import Trace, is_layer, is_sequential

__all__ = ["classes_source"]

_INDENT = "    "


@dataclasses.dataclass
class _Piece:
    """Source with gaps (``\\0``) for numbers: what is between the gaps, and the numbers.

    Parameters
    ----------
    text
        Source; a gap is a number, or the arguments of a class that is named before it.
    fills
        For each gap a number with the name of the argument that it is, or an instance.
    """

    text: str
    fills: list[tuple[str, str] | _Instance]

    def numbers(self) -> list[tuple[str, str]]:
        """All numbers, those of instances included, in order."""
        found: list[tuple[str, str]] = []
        for fill in self.fills:
            found += fill.numbers if isinstance(fill, _Instance) else [fill]
        return found


@dataclasses.dataclass
class _Instance:
    """One module of a class: its class, and the numbers in it."""

    cls: _Class
    numbers: list[tuple[str, str]]


class _Class:
    """Modules of equal source.

    Parameters
    ----------
    name
        Of the class.
    init
        Lines of its constructor behind ``super().__init__()``.
    forward
        Lines of its forward method, or none.
    """

    def __init__(self, name: str, init: _Piece, forward: list[str]) -> None:
        self.name, self.init, self.forward = name, init, forward
        self.instances: list[_Instance] = []

    def columns(self) -> list[tuple[tuple[str, ...], list[int]]]:
        """The numbers that differ between instances, each with its places; equal ones are one."""
        found: dict[tuple[str, ...], list[int]] = {}
        for place, column in enumerate(zip(*(i.numbers for i in self.instances), strict=True)):
            values = tuple(value for _, value in column)
            if len(set(values)) > 1:
                found.setdefault(values, []).append(place)
        return list(found.items())

    def parameters(self) -> dict[int, str]:
        """Names of the constructor's arguments, by the places that they fill."""
        names: dict[int, str] = {}
        used: set[str] = set()
        for _, places in self.columns():
            base = self.instances[0].numbers[places[0]][0]
            name, number = base, 1
            while name in used:
                number += 1
                name = f"{base}_{number}"
            used.add(name)
            names |= dict.fromkeys(places, name)
        return names

    def source(self) -> str:
        """The class."""
        names = self.parameters()
        values = [
            names.get(place, value) for place, (_, value) in enumerate(self.instances[0].numbers)
        ]
        arguments = list(dict.fromkeys(names.values()))
        lines = [
            f"class {self.name}(nn.Module):",
            f"{_INDENT}def __init__({', '.join(['self', *arguments])}):",
            f"{_INDENT * 2}super().__init__()",
            *(f"{_INDENT * 2}{line}" for line in _filled(self.init, values).splitlines()),
        ]
        if self.forward:
            lines += ["", *(f"{_INDENT}{line}" for line in self.forward)]
        return "\n".join(lines)


def _filled(piece: _Piece, values: Sequence[str]) -> str:
    """The source of a piece, given the text of every number in it."""
    texts, rest = [], list(values)
    for fill in piece.fills:
        if isinstance(fill, _Instance):
            own, rest = rest[: len(fill.numbers)], rest[len(fill.numbers) :]
            wanted = [own[places[0]] for _, places in fill.cls.columns()]
            texts.append(", ".join(wanted))
        else:
            texts.append(rest.pop(0))
    parts = piece.text.split("\0")
    return parts[0] + "".join(a + b for a, b in zip(texts, parts[1:], strict=True))


def classes_source(network: nn.Module, traces: dict[str, list[Trace]]) -> tuple[str, str]:
    """The classes of a network, in an order in which Python can read them.

    Parameters
    ----------
    network
        The network that was traced.
    traces
        What :func:`trace_network` gave.

    Returns
    -------
    tuple[str, str]
        The source of the classes, and the expression that builds the network.

    Raises
    ------
    UserError
        If a layer's arguments cannot be read off it, or a forward has no place in plain source.
    """
    writer = _Writer(traces)
    piece = writer.expression(network, "")
    expression = _filled(piece, [value for _, value in piece.numbers()])
    return "\n\n\n".join(cls.source() for cls in writer.classes.values()), expression


class _Writer:
    def __init__(self, traces: dict[str, list[Trace]]) -> None:
        self.traces = traces
        self.classes: dict[tuple[str, ...], _Class] = {}
        self.names: set[str] = set()
        #: Paths of all modules whose result is used.
        self.called = {""}
        for path, runs in traces.items():
            prefix = f"{path}." if path else ""
            self.called |= {prefix + c.target for c in runs[0].calls if isinstance(c.target, str)}

    def expression(self, module: nn.Module, path: str) -> _Piece:
        """The call that makes a module."""
        if is_layer(module):
            return _layer(module, path)
        if is_sequential(module) or type(module) in (nn.ModuleList, nn.ModuleDict):
            return self._container(module, path)
        return self._own_class(module, path)

    def _child(self, child: nn.Module, path: str) -> _Piece:
        """A child; one that nobody calls and that has no weights leaves its place only."""
        if path not in self.called and not child.state_dict() and not is_layer(child):
            if type(child) in (nn.ModuleList, nn.ModuleDict) and len(list(child.children())):
                return self.expression(child, path)
            return _Piece("nn.Identity()", [])
        return self.expression(child, path)

    def _container(self, module: nn.Module, path: str) -> _Piece:
        kind = "Sequential" if is_sequential(module) else type(module).__name__
        children = list(module.named_children())
        pieces = [
            (self.expression if kind == "Sequential" else self._child)(child, _below(path, name))
            for name, child in children
        ]
        fills = [fill for piece in pieces for fill in piece.fills]
        texts = [piece.text for piece in pieces]
        plain = [name for name, _ in children] == [str(i) for i in range(len(children))]
        if kind == "ModuleDict" or not plain:
            texts = [f"({name!r}, {text})" for (name, _), text in zip(children, texts, strict=True)]
            inner = _listed("OrderedDict([", texts, "])")
        elif kind == "ModuleList":
            inner = _listed("[", texts, "]")
        else:
            return _Piece(_listed("nn.Sequential(", texts, ")"), fills)
        return _Piece(f"nn.{kind}({inner})", fills)

    def _own_class(self, module: nn.Module, path: str) -> _Piece:
        lines, fills = [], []
        for name, parameter in module.named_parameters(recurse=False):
            lines.append(f"self.{name} = nn.Parameter(torch.zeros({tuple(parameter.shape)}))")
        for name, tensor in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                raise UserError(
                    f"no standalone file can be made: the buffer '{name}' of "
                    f"{type(module).__name__} is not in the weights"
                )
            kind = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
            shape = tuple(tensor.shape)
            lines.append(f'self.register_buffer("{name}", torch.zeros({shape}{kind}))')
        for name, child in module.named_children():
            below = _below(path, name)
            if below not in self.called and not child.state_dict() and not _leads(below, self):
                continue
            piece = self._child(child, below)
            usable = name.isidentifier() and not keyword.iskeyword(name)
            made = f"self.{name} = \1" if usable else f"self.add_module({name!r}, \1)"
            lines.append(made.replace("\1", piece.text))
            fills += piece.fills
        forward = forward_source(module, self.traces[path]) if path in self.traces else []
        init = _Piece("\n".join(lines), fills)
        base = type(module).__name__.strip("_")
        inside = [fill.cls.name for fill in fills if isinstance(fill, _Instance)]
        key = (base, init.text, *inside, "", *forward)
        if key not in self.classes:
            name, number = base, 1
            while name in self.names:
                number += 1
                name = f"{base}{number}"
            self.names.add(name)
            self.classes[key] = _Class(name, init, forward)
        cls = self.classes[key]
        instance = _Instance(cls, init.numbers())
        cls.instances.append(instance)
        return _Piece(f"{cls.name}(\0)", [instance])


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _leads(path: str, writer: _Writer) -> bool:
    """Whether something below a module is called."""
    return any(called.startswith(f"{path}.") for called in writer.called)


def _listed(start: str, texts: list[str], end: str) -> str:
    """The texts one below the other."""
    if not texts:
        return start + end
    inner = "".join(f"{text},\n" for text in texts)
    lines = "\n".join(_INDENT + line for line in inner.splitlines())
    return f"{start}\n{lines}\n{end}"


def _layer(module: nn.Module, path: str) -> _Piece:
    """The call that makes a layer of torch, its arguments read off its attributes."""
    texts: list[str] = []
    fills: list[tuple[str, str] | _Instance] = []
    positional = True
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name in ("self", "device", "dtype") or parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            continue
        if not hasattr(module, name):
            raise UserError(
                f"no standalone file can be made: the argument '{name}' of "
                f"{type(module).__name__} '{path}' cannot be read off it"
            )
        value = _plain(getattr(module, name))
        if name == "bias" and value is None:
            if not getattr(module, "affine", getattr(module, "elementwise_affine", True)):
                continue  # there is nothing to be without; older torch knows no such argument
            value = False
        if parameter.default is not inspect.Parameter.empty and value == parameter.default:
            positional = False
            continue
        positional = positional and parameter.default is inspect.Parameter.empty
        before = "" if positional else f"{name}="
        if type(value) is int:
            texts.append(f"{before}\0")
            fills.append((name, str(value)))
        elif value is None or isinstance(value, (bool, float, str, tuple)):
            texts.append(f"{before}{value!r}")
        else:
            raise UserError(
                f"no standalone file can be made: the argument '{name}' of "
                f"{type(module).__name__} '{path}' is a {type(value).__name__}"
            )
    home = "nn" if getattr(nn, type(module).__name__, None) is type(module) else None
    if home is None:
        raise UserError(
            f"no standalone file can be made: torch.nn has no {type(module).__name__} ('{path}')"
        )
    return _Piece(f"nn.{type(module).__name__}({', '.join(texts)})", fills)


def _plain(value: Any) -> Any:
    """An attribute as the argument that it was made of: (3, 3) is 3, a bias is True."""
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, (list, tuple)):
        parts = tuple(value)
        if parts and all(type(p) is int for p in parts) and len(set(parts)) == 1:
            return parts[0]
        return parts
    return value
