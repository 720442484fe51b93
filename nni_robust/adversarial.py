"""Adversarial examples that anybody can check again: what they are, files, and the check.

An example is a claim: this picture lies in the ball around that one, and the network misclassifies
it. The claim is about what is written down, so everything is rounded to float32 first and then
checked, in float64 for the distances and in float32 for the network: in evaluation mode, without
autocast, TF32 or folded batch norms (Carlini et al., 1902.06705, advise to keep examples).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nni_robust.attacks import NonFiniteOutput, Victim, undisturbed
from nni_robust.attacks._progress import network_hash
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = [
    "AdversarialExamples",
    "Verification",
    "float32_network",
    "outside",
    "predictions",
    "verify_examples",
]

_FORMAT = "nni-robust adversarial examples 1"
_PICTURES = ("clean", "adversarial")
_NUMBERS = ("labels", "predicted_clean", "predicted_adversarial", "index")
# Slack of the radius, in pixel units, and the rounding of one pixel in [0, 1] to float32.
_SLACK, _ROUNDING = 1e-6, 2.0**-25


@dataclasses.dataclass(frozen=True, eq=False)
class AdversarialExamples:
    """What one attack found on one network, each verified in float32.

    Parameters
    ----------
    clean, adversarial
        (N, C, H, W), float32, in [0, 1], on the CPU: pictures before and after the attack. Those of
        a network in half precision are the pictures as it was given them.
    labels
        (N,), int64: the true classes.
    predicted_clean, predicted_adversarial
        (N,), int64: the network's answers in float32.
    index
        (N,), int64: places of the pictures in the data.
    attack
        The attack's key, such as ``"pgd20@8/255"``.
    threat
        What it was allowed.
    classes
        Names of the classes; empty where nobody told.
    seed
        Of the random starts.
    pictures
        Pictures that were evaluated.
    broken
        Breaks that hold in float32; these are the first N of them (without those whose clean
        picture float32 misses, too, where the network computes in half precision).
    refuted
        Breaks that the attack claimed and float32 refutes; they count as no breaks.
    network
        What the network is called.
    fingerprint
        SHA-256 of its class, weights and statistics.

    Raises
    ------
    UserError
        If tensors do not fit each other.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    predicted_clean: Tensor
    predicted_adversarial: Tensor
    index: Tensor
    attack: str
    threat: ThreatModel
    classes: tuple[str, ...] = ()
    seed: int = 0
    pictures: int = 0
    broken: int = 0
    refuted: int = 0
    network: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        n = len(self.labels)
        for key in _PICTURES:
            value = getattr(self, key)
            if value.dtype != torch.float32 or value.dim() != 4 or len(value) != n:
                raise UserError(f"{key}: expected ({n}, C, H, W) float32, got {_kind(value)}")
        if self.clean.shape != self.adversarial.shape:
            raise UserError(
                f"clean is {_kind(self.clean)}, but adversarial is {_kind(self.adversarial)}"
            )
        for key in _NUMBERS:
            value = getattr(self, key)
            if value.dtype != torch.int64 or value.shape != (n,):
                raise UserError(f"{key}: expected ({n},) int64, got {_kind(value)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def file_name(self) -> str:
        """``"pgd20_8_255.safetensors"``: the attack's key without what paths do not take."""
        return re.sub(r"[/@]", "_", self.attack) + ".safetensors"

    def save(self, folder: str | Path) -> Path:
        """Write them into a folder, in one step; another run's file of that attack is replaced.

        Returns
        -------
        Path
            ``<folder>/<attack>.safetensors``: the tensors by their names, everything else as
            metadata.

        Raises
        ------
        UserError
            If the folder cannot be written.
        """
        path = Path(folder) / self.file_name
        metadata = {
            "format": _FORMAT,
            "attack": self.attack,
            "norm": self.threat.norm,
            "eps": repr(float(self.threat.eps)),
            "classes": json.dumps(list(self.classes)),
            "seed": str(self.seed),
            "pictures": str(self.pictures),
            "broken": str(self.broken),
            "refuted": str(self.refuted),
            "network": self.network,
            "fingerprint": self.fingerprint,
        }
        from nni_robust.training.weights import write_tensors

        # A clone each: tensors that share memory do not go into one file.
        tensors = {
            key: getattr(self, key).detach().cpu().clone(memory_format=torch.contiguous_format)
            for key in (*_PICTURES, *_NUMBERS)
        }
        try:
            write_tensors(path, tensors, metadata)
        except OSError as e:
            raise UserError(f"'{path}' cannot be written: {e.strerror}") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> AdversarialExamples:
        """Read a file of :meth:`save`; nothing in it is believed before it is verified.

        Raises
        ------
        UserError
            If it is missing, damaged, or something else.
        """
        if not Path(path).is_file():
            raise UserError(f"no file of adversarial examples '{path}'")
        try:
            with safe_open(path, framework="pt") as f:
                told = f.metadata() or {}
                if told.get("format") != _FORMAT:
                    raise UserError(f"'{path}' holds no adversarial examples ({_FORMAT})")
                tensors = {key: f.get_tensor(key) for key in (*_PICTURES, *_NUMBERS)}
            counts = ("seed", "pictures", "broken", "refuted")
            numbers: dict[str, Any] = {key: int(told[key]) for key in counts}
            classes = json.loads(told["classes"])
            if not isinstance(classes, list):
                raise ValueError("classes is no list")
            threat: Any = {"norm": told["norm"], "eps": float(told["eps"])}
            return cls(
                **tensors,
                **numbers,
                attack=told["attack"],
                threat=ThreatModel(**threat),
                classes=tuple(map(str, classes)),
                network=told["network"],
                fingerprint=told["fingerprint"],
            )
        except UserError as e:
            raise e if str(path) in str(e) else UserError(f"'{path}': {e}") from None
        except (SafetensorError, OSError, KeyError, ValueError) as e:
            raise UserError(f"'{path}' is damaged: {type(e).__name__}: {e}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
    """Which adversarial examples are what they say, for one network.

    Parameters
    ----------
    outside
        (N,), bool: too far from the clean picture, outside [0, 1], or NaN.
    resisted
        (N,), bool: the network gives the right class.
    clean_wrong
        (N,), bool: the network misses the clean picture, too, so that no attack was needed.
    same_network
        Whether the network has the weights that the examples were made for.
    """

    outside: Tensor
    resisted: Tensor
    clean_wrong: Tensor
    same_network: bool

    @property
    def holds(self) -> Tensor:
        """(N,), bool: inside ball and box, right before and wrong after."""
        return ~(self.outside | self.resisted | self.clean_wrong)


def verify_examples(
    model: nn.Module, examples: AdversarialExamples, *, batch_size: int = 256
) -> Verification:
    """Check examples again, without attacking; the network is left exactly as it was.

    Parameters
    ----------
    model
        Network from pictures (N, C, H, W) in [0, 1] to logits (N, K); of one that does not compute
        in float32 a copy is asked that does.
    examples
        From :meth:`AdversarialExamples.load` or an evaluation.
    batch_size
        Pictures at a time.

    Raises
    ------
    UserError
        If the network does not take the pictures, or a copy is needed and cannot be made.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    with undisturbed(model):
        network = float32_network(model)
        after, before = (
            predictions(network, pictures, batch_size)
            for pictures in (examples.adversarial.nan_to_num(), examples.clean.nan_to_num())
        )
    return Verification(
        outside(examples.clean, examples.adversarial, examples.threat),
        after == examples.labels,
        before != examples.labels,
        network_hash(model) == examples.fingerprint,
    )


def outside(clean: Tensor, adversarial: Tensor, threat: ThreatModel) -> Tensor:
    """(N,), bool: which pictures the threat forbids, the clean ones in [0, 1] included.

    The radius may be exceeded by 1e-6 and, in L2, by what rounding each pixel to float32 can add.
    """
    change = (adversarial.double() - clean.double()).flatten(1)
    if len(change) == 0:
        return torch.zeros(0, dtype=torch.bool, device=change.device)
    if threat.norm == "linf":
        size, slack = change.abs().amax(1), _SLACK
    else:
        size = torch.linalg.vector_norm(change, dim=1)
        slack = _SLACK + math.sqrt(change.shape[1]) * _ROUNDING
    low, high = torch.cat([clean, adversarial], 1).flatten(1).aminmax(dim=1)
    # Written so that NaN is outside.
    return ~((size <= threat.eps + slack) & (low >= 0) & (high <= 1))


def float32_network(model: nn.Module) -> nn.Module:
    """The network, or a copy in float32 of one that computes in another type.

    Raises
    ------
    UserError
        If it cannot be copied.
    """
    values = [*model.parameters(), *model.buffers()]
    if all(v.dtype == torch.float32 for v in values if v.is_floating_point()):
        return model
    try:
        return copy.deepcopy(model).float()
    except (RuntimeError, TypeError) as e:
        raise UserError(
            f"the network cannot be copied into float32: {str(e).splitlines()[0]}"
        ) from None


@torch.no_grad()
def predictions(network: nn.Module, pictures: Tensor, batch_size: int = 256) -> Tensor:
    """(N,), int64, where the pictures are: classes that a frozen float32 network answers.

    Raises
    ------
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    place = next((v.device for v in network.parameters()), pictures.device)
    victim, found = Victim(network, torch.float32), [torch.zeros(0, dtype=torch.int64)]
    with _full_precision(place):
        for part in torch.split(pictures, batch_size) if len(pictures) else ():
            logits = victim(part.to(place, torch.float32))
            if not torch.isfinite(logits).all():
                raise NonFiniteOutput("the network's output is NaN or infinite")
            found.append(logits.argmax(1).cpu())
    return torch.cat(found).to(pictures.device)


@contextlib.contextmanager
def _full_precision(place: torch.device) -> Iterator[None]:
    """Neither autocast nor the shortened float32 of GPUs (TF32) and of oneDNN."""
    product, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(place.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(product)
        torch.backends.cudnn.allow_tf32 = convolution


def _kind(value: Tensor) -> str:
    return f"{tuple(value.shape)} {value.dtype}".replace("torch.", "")
