"""Settings of the gradient attacks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from nni_robust.attacks._base import Precision
from nni_robust.attacks._losses import LOSSES
from nni_robust.config import Ratio, strict
from nni_robust.errors import UserError

__all__ = ["CWSettings", "FGSMSettings", "MIFGSMSettings", "PGDSettings", "fields_of"]


@dataclasses.dataclass(frozen=True)
class FGSMSettings:
    """Settings of FGSM, and those that all gradient attacks share.

    Parameters
    ----------
    step_size
        Length of a step in pixel units, may be written ``"2/255"``. None is eps for FGSM and eps/4
        for the others.
    random_start
        Start at a random point of the ball; with FGSM this is FGSM-RS (2001.03994).
    targeted
        The labels given are the classes to reach.
    loss
        ``"ce"``, ``"dlr"``, ``"margin"``, or a function from (N, K) logits and (N,) labels to (N,)
        losses.
    bn_mode
        ``"eval"``, or ``"train"``: attack with the batch's own statistics, like the seeds did.
    channels_last
        Compute in channels-last memory, which is faster for most convolutions on CPUs and on
        tensor cores, and changes results in the last digits. ``"auto"`` does so, as it was
        faster for every network measured (docs/speed.md). None is False; but where accuracy is
        measured (`evaluate`) and the attack has several steps, it is ``"auto"``.
    fold
        Fold batch norms into convolutions during the attack where that is safe; logits change in
        the last digits. ``"auto"`` does so if the attack has steps enough to pay for it. None as
        above.
    precision
        ``"float32"`` leaves types alone. ``"bf16"`` runs the network under bfloat16 autocast, for
        float32 pictures; the pictures, the sign of their gradient and the projection stay float32,
        and a picture leaves the batch (`early_stop`) only if float32 confirms the break.
    compile
        Run the network through ``torch.compile``, once for each network and size of batch: tens of
        seconds at first, for networks of one architecture that are attacked for long.
    cuda_graph
        Record one gradient step as a CUDA graph and replay it, for each batch anew. True needs
        pictures on a CUDA device; ``"auto"`` does so there, for attacks of 5 steps or more. Where
        a network cannot be recorded, a warning says why, and the steps run as usual.
    """

    step_size: Ratio | None = None
    random_start: bool = False
    targeted: bool = False
    loss: Any = "ce"
    bn_mode: Literal["eval", "train"] = "eval"
    channels_last: bool | Literal["auto"] | None = None
    fold: bool | Literal["auto"] | None = None
    precision: Precision = "float32"
    compile: bool = False
    cuda_graph: bool | Literal["auto"] = False

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise UserError(f"step_size: {self.step_size!r} is not allowed; a number > 0 is")
        if not callable(self.loss) and self.loss not in [*LOSSES]:
            raise UserError(
                f"loss: {self.loss!r} is not allowed; allowed: {', '.join(LOSSES)} or a function"
            )
        if self.loss == "dlr" and self.targeted:
            raise UserError("loss: 'dlr' is not allowed with targeted; it needs the true label too")
        if self.fold is True and self.bn_mode == "train":
            raise UserError("fold: True is not allowed with bn_mode 'train'; the statistics change")
        if self.compile and self.cuda_graph is True:
            raise UserError("cuda_graph: True is not allowed with compile; one of the two is")


@dataclasses.dataclass(frozen=True)
class PGDSettings(FGSMSettings):
    """Settings of PGD.

    Parameters
    ----------
    steps
        Number of gradient steps.
    restarts
        Number of runs from different random starts. Each picture keeps its first success, else its
        highest loss; later runs attack only the pictures that still resist.
    early_stop
        A picture leaves the batch at its first misclassified iterate and keeps that iterate.
        Otherwise the last iterate counts, as in adversarial training.
    momentum
        Decay of the gradients of earlier steps (MI-FGSM); 0 is none.
    """

    random_start: bool = True
    steps: int = 10
    restarts: int = 1
    early_stop: bool = False
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("steps", "restarts"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number >= 1 is")
        if not 0 <= self.momentum < math.inf:
            raise UserError(f"momentum: {self.momentum!r} is not allowed; a number >= 0 is")
        if self.restarts > 1 and not self.random_start:
            raise UserError("restarts: more than 1 needs random_start; the runs would be equal")
        if self.bn_mode == "train" and (self.early_stop or self.restarts > 1):
            raise UserError(
                "bn_mode: 'train' is not allowed with early_stop or restarts, which take pictures "
                "out of the batch and so change its statistics"
            )


@dataclasses.dataclass(frozen=True)
class MIFGSMSettings(PGDSettings):
    """Settings of MI-FGSM: those of PGD, with momentum 1 and no random start.

    The paper's step is eps/steps; the default here is eps/4, the 2/255 for 8/255 that torchattacks
    uses and that reproduces the figures RobNet's paper prints best.
    """

    random_start: bool = False
    momentum: float = 1.0


@dataclasses.dataclass(frozen=True)
class CWSettings(PGDSettings):
    """Settings of CW: those of PGD, with the loss ``"margin"``."""

    loss: Any = "margin"


def fields_of(settings: FGSMSettings) -> dict[str, Any]:
    """Settings by name, unlike ``dataclasses.asdict`` without copies."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
