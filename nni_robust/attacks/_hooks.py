"""Whether Python of somebody else runs inside a network's forward pass."""

from __future__ import annotations

from torch import nn

__all__ = ["has_hooks"]


def has_hooks(model: nn.Module) -> bool:
    """Whether any module has forward or backward hooks, such as a counter of passes."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in model.modules()
    )
