"""FSP distance: how far an attack moves what a cell does to its input.

The FSP matrix (Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017, equation 1) of
a cell is G(x) = 1/(h w) Σ over positions of outer(F_in, F_out). RobNet (Guo et al., CVPR 2020,
arXiv 1911.10695, section 3.5) measures L = mean over pictures of ‖G(x) - G(x_adv)‖² per cell.

What RobNet leaves open, as decided here: F_in is the cell's second input, the raw output of the
cell before; where a cell halves the resolution F_in is max-pooled to the output's size (as Yim et
al. do); and the squared norm is divided by the number of matrix entries (`reduce="mean"`), because
the plain sum runs to 10^7 in deep cells and the paper's figures show at most 0.05.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_robust.attacks import undisturbed
from nni_robust.errors import UserError, nearest

__all__ = ["Tap", "fsp_distance", "fsp_matrix", "fsp_taps"]

#: (where F_in comes from, name of the module whose output is F_out). F_in is the output of the
#: module of that name, or, where it is a number, that positional argument of the F_out module.
Tap = tuple[str | int, str]


def fsp_matrix(f_in: Tensor, f_out: Tensor) -> Tensor:
    """FSP matrices of a batch.

    Parameters
    ----------
    f_in
        (N, C_in, H, W), float; max-pooled to the size of `f_out` where it is larger.
    f_out
        (N, C_out, h, w), float.

    Returns
    -------
    Tensor
        (N, C_in, C_out); half precision is computed and returned in float32.

    Raises
    ------
    ValueError
        If the tensors are not feature maps of the same pictures, or `f_in` is smaller than `f_out`.
    """
    if f_in.dim() != 4 or f_out.dim() != 4 or len(f_in) != len(f_out):
        raise ValueError(
            f"shapes {tuple(f_in.shape)} and {tuple(f_out.shape)} are no feature maps of one batch"
        )
    height, width = f_out.shape[2:]
    if f_in.shape[2] < height or f_in.shape[3] < width:
        raise ValueError(
            f"F_in of {tuple(f_in.shape[2:])} is smaller than F_out of {(height, width)}"
        )
    if f_in.dtype in (torch.float16, torch.bfloat16):
        f_in = f_in.float()
    if f_in.shape[2:] != f_out.shape[2:]:
        f_in = F.adaptive_max_pool2d(f_in, (height, width))
    source, target = f_in.flatten(2), f_out.to(f_in.dtype).flatten(2)
    return source @ target.transpose(1, 2) / (height * width)


def fsp_taps(model: nn.Module, *, cells: str = "cells", argument: int = 1) -> list[Tap]:
    """The taps of a network whose cells are a list of modules called with the earlier outputs.

    Parameters
    ----------
    model
        Such as a RobNet.
    cells
        Name of the list.
    argument
        Which positional argument of a cell is F_in: of a RobNet, 1 is the output of the cell
        before, 0 that of the one before it.

    Raises
    ------
    UserError
        If the network has no such list.
    """
    found = dict(model.named_modules()).get(cells)
    if not isinstance(found, (nn.ModuleList, nn.Sequential)) or len(found) == 0:
        raise UserError(
            f"cells: the network {type(model).__name__} has no list of modules '{cells}'"
        )
    return [(argument, f"{cells}.{index}") for index in range(len(found))]


def fsp_distance(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    *,
    cells: Sequence[Tap] | None = None,
    reduce: Literal["mean", "sum"] = "mean",
    batch_size: int = 64,
) -> list[float]:
    """FSP distance of each cell, averaged over pictures.

    The network is in evaluation mode meanwhile and is left exactly as it was.

    Parameters
    ----------
    model
        The network, with weights; on the device of the pictures.
    x, x_adv
        (N, C, H, W), float, in [0, 1]: pictures, and the same pictures attacked.
    cells
        What to compare; None is :func:`fsp_taps` of the network.
    reduce
        ``"mean"``: squared differences averaged over the C_in times C_out entries; ``"sum"``: added
        up, the squared norm as printed.
    batch_size
        Pictures at a time; one batch needs two matrices of batch_size * C_in * C_out per cell.

    Returns
    -------
    list of float
        One distance per tap, at least 0 and finite.

    Raises
    ------
    UserError
        If the network has no module of that name, a module is not used exactly once per forward
        pass, or a setting is out of range.
    ValueError
        If the pictures do not match, there are none, or feature maps are not finite.
    """
    if reduce not in ("mean", "sum"):
        raise UserError(f"reduce: {reduce!r} is not allowed; allowed: mean, sum")
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size!r} is not allowed; at least 1 is")
    if x.shape != x_adv.shape or len(x) == 0:
        raise ValueError(
            f"pictures of shapes {tuple(x.shape)} and {tuple(x_adv.shape)} cannot be compared"
        )
    taps = fsp_taps(model) if cells is None else list(cells)
    totals = torch.zeros(len(taps), dtype=torch.float64)
    with undisturbed(model), torch.no_grad(), _recording(model, taps) as maps:
        for start in range(0, len(x), batch_size):
            batch = slice(start, start + batch_size)
            before = _matrices(model, x[batch], taps, maps)
            after = _matrices(model, x_adv[batch], taps, maps)
            for k, (a, b) in enumerate(zip(before, after, strict=True)):
                squares = (a - b).square().sum(dim=(1, 2))
                entries = a[0].numel() if reduce == "mean" else 1
                totals[k] += float(squares.cpu().double().sum()) / entries
    if not totals.isfinite().all():
        name = taps[int((~totals.isfinite()).nonzero()[0])][1]
        raise ValueError(f"the feature maps of '{name}' are not finite")
    return [float(total) / len(x) for total in totals]


def _matrices(
    model: nn.Module, x: Tensor, taps: Sequence[Tap], maps: dict[Any, Any]
) -> list[Tensor]:
    maps.clear()
    model(x)
    result = []
    for source, name in taps:
        f_in = maps.get(source if isinstance(source, str) else (source, name))
        f_out = maps.get(name)
        if not isinstance(f_in, Tensor) or not isinstance(f_out, Tensor):
            lost = source if f_out is not None else name
            raise UserError(
                f"cells: {lost!r} of {(source, name)!r} gave no tensor in a forward pass"
            )
        result.append(fsp_matrix(f_in, f_out))
    return result


@contextmanager
def _recording(model: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Any, Any]]:
    """Hooks that keep the outputs of the tapped modules, and the arguments asked for."""
    modules = dict(model.named_modules())
    maps: dict[Any, Any] = {}
    arguments: dict[str, set[int]] = {}
    for source, name in taps:
        for module in (source, name):
            if isinstance(module, str) and module not in modules:
                raise UserError(
                    f"cells: the network has no module '{module}'{nearest(module, modules)}"
                )
            if isinstance(module, str):
                arguments.setdefault(module, set())
        if isinstance(source, int):
            arguments[name].add(source)

    def hook(name: str) -> Any:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if name in maps:
                raise UserError(f"cells: '{name}' is used more than once in a forward pass")
            maps[name] = output
            for position in arguments[name]:
                if position < len(inputs):
                    maps[position, name] = inputs[position]

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in arguments]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
