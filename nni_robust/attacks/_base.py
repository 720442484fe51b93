"""The contract that every attack keeps, whoever wrote it.

An attack is called as ``attack(model, x, y)`` and gives pictures of the same shape, type, device
and memory format, inside the threat ball and inside [0, 1], and leaves the network as it was. The
base class does all of that; a subclass only says how to search (the shape is foolbox's).
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from nni_robust.attacks._compile import compiled
from nni_robust.attacks._frozen import BNMode, undisturbed
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball, ball_around
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel, eps_label

__all__ = ["Attack", "NonFiniteOutput", "Precision", "Victim", "check_pictures"]

#: What a network computes in during an attack; pictures and projection are float32 in both.
Precision = Literal["float32", "bf16"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class NonFiniteOutput(RuntimeError):
    """The network's output or gradient is NaN or infinite, so no robustness can be measured."""


def check_pictures(x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """Refuse what is no batch of labelled pictures.

    Parameters
    ----------
    x
        (N, C, H, W), float16, bfloat16, float32 or float64, in [0, 1].
    y
        (N,), whole numbers from 0.

    Returns
    -------
    tuple
        The labels as int64 on the pictures' device, and the largest (-1 for an empty batch).

    Raises
    ------
    UserError
        On a wrong type or shape, a pixel outside [0, 1] or NaN, a negative label.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(f"x and y must be tensors, got {type(x).__name__} and {type(y).__name__}")
    if x.dtype not in _FLOATS:
        raise UserError(
            f"x has type {x.dtype}; pictures must be floats in [0, 1] (bytes are divided by 255)"
        )
    if x.dim() != 4 or (len(x) > 0 and x.numel() == 0):
        raise UserError(f"x has shape {tuple(x.shape)}; pictures must have shape (N, C, H, W)")
    if y.dtype not in _INTEGERS:
        raise UserError(f"y has type {y.dtype}; labels must be whole numbers")
    if y.shape != x.shape[:1]:
        raise UserError(
            f"y has shape {tuple(y.shape)}; {len(x)} pictures need labels of shape ({len(x)},)"
        )
    y = y.to(x.device, torch.int64)
    if len(x) == 0:
        return y, -1
    # One transfer for all four numbers: each would stall a GPU.
    low, high, first, last = torch.stack(
        [v.double() for v in (*x.detach().aminmax(), *y.aminmax())]
    ).tolist()
    if not (low >= 0 and high <= 1):  # also catches NaN, which passes no comparison
        raise UserError(
            f"x has pixels in [{low:g}, {high:g}]; pictures must lie in [0, 1] (normalisation is a "
            "layer of the network)"
        )
    if first < 0:
        raise UserError(f"y has the label {first:.0f}; labels must be 0 or more")
    return y, int(last)


class Victim:
    """A network as attacks see it: pictures of any float type in, checked float32 logits out.

    Parameters
    ----------
    model
        The network, already frozen.
    dtype
        Type that the network is called with.
    largest_label
        Largest label of the batch; the network must have more classes than that.
    precision
        ``"bf16"``: call the network under bfloat16 autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        largest_label: int = -1,
        precision: Precision = "float32",
    ) -> None:
        self.model, self.dtype, self.largest_label = model, dtype, largest_label
        #: Whether logits are rounded more than the network's own, so that breaks need confirming.
        self.reduced = precision == "bf16"
        #: What is called for the network in place of it, such as its compiled form.
        self.network: Callable[[Tensor], Tensor] = model
        #: Whether the last logits were computed in float16, whose gradients underflow.
        self.half = False
        #: Finite as long as everything that was watched is; on the device, so that none waits.
        self.health: Tensor | float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K), float32, or float64 if the network computes in float64."""
        version = None if x.is_inference() else x._version
        with self.casts(x.device):
            logits = self.network(x.to(self.dtype))
        if version is not None and x._version != version:
            raise UserError(
                "the network changes the pictures that it is given in place (as x.sub_(mean) "
                "does); a network that begins with x = x.clone() does not"
            )
        return self._checked(logits, x)

    def in_full(self, x: Tensor) -> Tensor:
        """The logits without autocast, by the network itself, without a gradient."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self._checked(self.model(x.to(self.dtype)), x)

    def casts(self, device: torch.device) -> AbstractContextManager[object]:
        """Autocast where the precision asks for it; otherwise the caller's own stays."""
        return torch.autocast(device.type, torch.bfloat16) if self.reduced else nullcontext()

    def _checked(self, logits: Tensor, x: Tensor) -> Tensor:
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"the network must return logits of shape ({len(x)}, classes), not {shape}"
            )
        if logits.shape[1] <= self.largest_label:
            raise UserError(
                f"y has the label {self.largest_label}, but the network has {logits.shape[1]} "
                f"classes (labels 0 to {logits.shape[1] - 1})"
            )
        self.half = logits.dtype == torch.float16
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        self.watch(logits)
        return logits

    def watch(self, values: Tensor) -> None:
        """Remember any NaN, which hides otherwise: its sign is 0, comparing with it gives False."""
        total = values.detach().sum()
        if isinstance(self.health, Tensor) and not self.health.is_inference():
            # In place, so that a replayed step adds to what the steps before it found.
            self.health.add_(total)
        else:
            self.health = self.health + total


class Attack(ABC):
    """Base class of attacks; a subclass implements :meth:`_run` and sets `label`.

    Attributes
    ----------
    label
        Short name without the strength, such as ``"pgd20"``.
    threat
        Ball that the attack may search.
    targeted
        True if the labels it is given are the classes it aims at, not the true ones.
    bn_mode, channels_last, fold
        How the network is held during the attack: see :func:`undisturbed`. With `fold` the search
        runs on a network that is equal up to rounding; what it finds is the caller's to verify.
    """

    label: str
    threat: ThreatModel
    targeted: bool = False
    bn_mode: BNMode = "eval"
    channels_last: bool = False
    fold: bool = False
    precision: Precision = "float32"
    compile: bool = False

    def __init__(self, threat: ThreatModel, label: str) -> None:
        self.threat, self.label = threat, label

    @property
    def key(self) -> str:
        """Name of its accuracy in results: ``"pgd20@8/255"``, ``"pgd20-l2@0.5"``."""
        norm = "" if self.threat.norm == "linf" else f"-{self.threat.norm}"
        return f"{self.label}{norm}@{eps_label(self.threat.eps)}"

    def with_early_exit(self) -> Attack:
        """The same attack for measuring: it may leave a picture alone once it is misclassified.

        It may also compute faster with other rounding; whoever measures classifies what it finds
        with the network as it is.
        """
        return self

    def in_precision(self, precision: Precision) -> Attack:
        """The same attack in another precision, for measuring; itself if it knows no other."""
        return self

    def keeping_in(self, folder: Path) -> Attack | None:
        """The same attack, keeping in a folder what it has found so far; None if it cannot.

        What cannot is resumed by its caller, batch by batch.
        """
        return None

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Attack one batch.

        Parameters
        ----------
        model
            Network from pictures to logits (N, K). It is called with pictures of `x`'s type.
        x
            (N, C, H, W), float16, bfloat16, float32 or float64, in [0, 1], any memory format.
        y
            (N,), whole numbers from 0: true labels; of a targeted attack, the classes to reach.
        seed
            Makes random starts repeatable. None draws from torch's global generator.
        index
            (N,), int64: with a seed, starts depend on the seed and on these numbers only. None
            numbers the pictures of the batch from 0.

        Returns
        -------
        Tensor
            Pictures like `x`: same shape, type, device and memory format, inside ball and box
            exactly as measured in float64. An empty batch gives an empty batch; with a radius of 0
            the pictures come back as they are.

        Raises
        ------
        UserError
            On pictures or labels that :func:`check_pictures` refuses, labels that the network has
            no class for, and networks that the attack cannot use.
        NonFiniteOutput
            If the search met NaN, which is the network's doing.
        """
        y, largest = check_pictures(x, y)
        if index is not None and (index.shape != y.shape or index.dtype != torch.int64):
            raise UserError(f"index must be int64 of shape ({len(x)},)")
        if len(x) == 0 or self.threat.eps == 0:
            return x.detach().clone()
        if self.precision == "bf16" and x.dtype != torch.float32:
            raise UserError(
                f"precision: 'bf16' is not allowed for pictures of type {x.dtype}; float32 is"
            )
        # A caller may have switched gradients off, or hold tensors made in inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            clean, y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
            if self.channels_last:
                clean = clean.contiguous(memory_format=torch.channels_last)
            if index is None:
                index = torch.arange(len(x))
            noise = Noise(None if seed is None else operator.index(seed), index.to(x.device))
            fold = clean if self.fold else None
            with undisturbed(
                model,
                self.bn_mode,
                channels_last=self.channels_last,
                fold=fold,
                thrifty=not self.compile,  # compiled code would order such weights at each step
            ):
                ball = ball_around(clean, self.threat)
                victim = Victim(model, x.dtype, largest, self.precision)
                if self.compile:
                    with victim.casts(x.device):
                        victim.network = compiled(model, clean)
                adv = self._run(victim, y, ball, noise).detach()
            adv = ball.exact(adv)
            if not torch.isfinite(adv.sum(dtype=torch.float64) + victim.health):
                raise NonFiniteOutput(
                    f"a logit or gradient is not finite under the attack {self.key}"
                )
            out = torch.empty_like(x, requires_grad=False)
            return adv if adv.stride() == out.stride() else out.copy_(adv)

    @abstractmethod
    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        """Search the ball.

        Parameters
        ----------
        victim
            The frozen network: pictures to logits.
        y
            (N,), int64.
        ball
            Clean pictures (``ball.x``, float32 or float64) and what is allowed around them.
        noise
            Where random starts come from.

        Returns
        -------
        Tensor
            (N, C, H, W), like ``ball.x``. The caller projects it.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key})"
