"""How much work a measurement was, in a unit that does not depend on the machine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["Passes", "count_passes"]


@dataclasses.dataclass
class Passes:
    """Pictures that went through a network.

    Parameters
    ----------
    backward
        Pictures that went forward and, for a gradient, backward.
    forward
        Pictures that went forward only.
    """

    backward: int = 0
    forward: int = 0

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """What runs inside this ``with`` block does not count."""
        kept = self.backward, self.forward
        try:
            yield
        finally:
            self.backward, self.forward = kept

    @property
    def equivalent(self) -> float:
        """Forward-backward passes, a forward pass counted as a third of one."""
        return self.backward + self.forward / 3


@contextlib.contextmanager
def count_passes(model: nn.Module) -> Iterator[Passes]:
    """Count the pictures that go through a network inside the ``with`` block.

    A gradient counts once for each forward pass, whatever it is taken for; a forward pass whose
    graph is thrown away is a forward pass. The network's output must be a tensor.
    """
    passes = Passes()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        n = len(output)
        passes.forward += n
        if output.requires_grad:
            seen: list[bool] = []

            def back(gradient: Tensor) -> None:
                if not seen:  # two gradients through one graph are one pass
                    seen.append(True)
                    passes.forward -= n
                    passes.backward += n

            output.register_hook(back)  # type: ignore[no-untyped-call]

    handle = model.register_forward_hook(after)
    try:
        yield passes
    finally:
        handle.remove()
