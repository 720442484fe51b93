"""Use a network without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from nni_robust.attacks._fold import folded
from nni_robust.errors import UserError

__all__ = ["BNMode", "undisturbed"]

#: What batch normalisation does during an attack: running statistics, or those of the batch.
BNMode = Literal["eval", "train"]


@contextmanager
def undisturbed(
    model: nn.Module,
    bn_mode: BNMode = "eval",
    *,
    channels_last: bool = False,
    fold: Tensor | None = None,
    thrifty: bool = True,
) -> Iterator[nn.Module]:
    """Freeze a network, and give it back bit for bit as it was, also after an exception.

    Inside, every module is in evaluation mode and no parameter requires a gradient. Outside, each
    module's own training flag, each parameter's ``requires_grad``, ``.grad`` and memory, and the
    buffers of batch normalisation are what they were. Flags are set one by one, not by
    ``model.eval()``: a sub-module that its owner keeps in evaluation mode stays there, and an
    overridden ``train`` does not run.

    Autocast remembers nothing inside: it keeps the casts of tensors that require a gradient, such
    as the attacked pictures, and would give the old ones after these were changed in place.

    Parameters
    ----------
    model
        The network.
    bn_mode
        ``"eval"`` uses the running statistics. ``"train"`` lets batch normalisation use the
        statistics of the batch, as the repositories of the seeds did; the running statistics
        are restored afterwards.
    channels_last
        Hold the weights of convolutions in channels-last memory inside (if `thrifty`, on a CPU
        only those that are folded: kernels take pictures of that format and weights of any).
    fold
        Fold batch norms into the convolutions before them where that is safe (`_fold`), and compute
        the others more cheaply, which changes logits in the last digits. Pictures as the network
        takes them, (N, C, H, W): a few are used to watch a network that was not seen before. None
        folds nothing.
    thrifty
        On a CPU, make no copies of weights that take more memory than they save; put faster 1x1
        convolutions and batch norms in. False is for compiled networks, which want neither.

    Raises
    ------
    UserError
        If `model` is no module, or `fold` is given with `bn_mode` ``"train"``.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if fold is not None and bn_mode == "train":
        raise UserError("fold is not allowed with bn_mode 'train': the statistics change")
    modules = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad, p.data) for p in model.parameters()]
    statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
    remembers = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        # What is so already is not set again: attacks of small networks would spend a tenth on it.
        for module, training in modules:
            if training:
                module.training = False
            if bn_mode == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = True
                statistics += [(b, b.clone()) for b in module.buffers(recurse=False)]
        for parameter, requires_grad, *_ in parameters:
            if requires_grad:
                parameter.requires_grad_(False)
        with ExitStack() as stack:
            if fold is not None:
                # Weights are folded straight into their last format: one copy, not two.
                form = torch.channels_last if channels_last else torch.preserve_format
                spare = thrifty and fold.device.type == "cpu"
                stack.enter_context(
                    folded(model, fold, thrifty=spare, eager=thrifty, memory_format=form)
                )
            for parameter, *_ in parameters:
                # On a CPU, kernels order weights anew in any case, and a copy takes memory.
                spare = thrifty and parameter.device.type == "cpu"
                if channels_last and parameter.dim() == 4 and not spare:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            yield model
    finally:
        torch.set_autocast_cache_enabled(remembers)
        for module, training in modules:
            if module.training != training:
                module.training = training
        for parameter, requires_grad, grad, data in parameters:
            if channels_last:
                parameter.data = data
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        with torch.no_grad():
            for buffer, value in statistics:
                buffer.copy_(value)
