"""Hooks: what may prepare the network for a batch, such as a supernet's choice of a path."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

__all__ = ["Hook", "StatefulHook"]


class Hook(Protocol):
    """Something that prepares the network for a batch."""

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        """Called before each batch is attacked; a supernet draws its path here.

        Weights that the batch then does not use keep their value to the bit: they have no gradient,
        so neither momentum nor weight decay moves them.

        Parameters
        ----------
        model
            The network itself, without any wrapper.
        generator
            Random numbers of this batch, the same on every device and after a resume.
        """


@runtime_checkable
class StatefulHook(Protocol):
    """A hook that remembers something; its state goes into the checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, JSON-able."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
