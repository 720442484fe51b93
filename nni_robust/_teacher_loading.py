"""Where a teacher's trained weights come from: files, RobustBench, the store."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust._teacher import ROBUSTBENCH, Teacher, is_path
from nni_robust.config import as_mapping
from nni_robust.errors import UserError
from nni_robust.store import content_key, open_store

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "build_teacher",
    "from_robustbench",
    "has_weights",
    "load_teacher",
    "source_key",
    "teacher_from_store",
]

#: RobustBench's data sets by number of classes; its networks know no other.
_BENCHMARKS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}


def load_teacher(teacher: Teacher, num_classes: int, input_shape: Sequence[int]) -> nn.Module:
    """A teacher with its trained weights.

    Parameters
    ----------
    teacher
        Which one.
    num_classes
        Outputs that it must have.
    input_shape
        (C, H, W) of the pictures that it must take.

    Returns
    -------
    nn.Module
        On the CPU, in evaluation mode; no parameter requires a gradient.

    Raises
    ------
    UserError
        If it is unknown, has no weights, its weights are missing, damaged or those of another
        architecture, or it does not fit the pictures or classes.
    """
    name = teacher.architecture
    if name.startswith(ROBUSTBENCH):
        if teacher.weights is not None:
            raise UserError(
                f"teacher.weights: {teacher.weights!r} is not allowed with '{name}', which brings "
                "its own"
            )
        return _ready(from_robustbench(name, num_classes), teacher, num_classes, input_shape)
    if not has_weights(teacher):
        raise UserError(
            f"teacher '{name}' has no weights; give teacher.weights, or teacher.train and a "
            "strategy that trains it first"
        )
    network = build_teacher(teacher, num_classes, pretrained=teacher.weights is None)
    if teacher.weights is not None:
        from nni_robust.training.weights import load_weights

        load_weights(network, Path(teacher.weights).expanduser())
    return _ready(network, teacher, num_classes, input_shape)


def teacher_from_store(
    store: str | Path, key: str, teacher: Teacher, num_classes: int, input_shape: Sequence[int]
) -> nn.Module:
    """The teacher that a :class:`TeacherTraining` left in a store; see :func:`load_teacher`.

    Parameters
    ----------
    store
        The store's folder.
    key
        The trial's key, as its record has it.
    teacher, num_classes, input_shape
        See :func:`load_teacher`.

    Raises
    ------
    UserError
        If there are no such weights, or they do not fit.
    """
    from nni_robust.training.weights import load_weights

    if teacher.architecture.startswith(ROBUSTBENCH):
        network = from_robustbench(teacher.architecture, num_classes)
    else:
        network = build_teacher(teacher, num_classes, pretrained=False)
    load_weights(network, open_store(store).file(key, "weights.safetensors"))
    return _ready(network, teacher, num_classes, input_shape)


def source_key(teacher: Teacher) -> str:
    """What the teacher is, file contents included: equal for equal teachers only."""
    files = [teacher.weights]
    if is_path(teacher.architecture):
        path = Path(teacher.architecture)
        files.append(str(path / "config.json" if path.is_dir() else path))
    if not teacher.architecture.startswith(ROBUSTBENCH):
        own = _architecture(teacher).weights
        files.append(None if own is None else str(own))
    return content_key(as_mapping(teacher), [_digest(file) for file in files])


def _digest(file: str | None) -> str | None:
    """Hash of a file's bytes; None where there is none."""
    path = None if file is None else Path(file).expanduser()
    if path is None or not path.is_file():
        return None
    stat = path.stat()
    return _digest_of(str(path.absolute()), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _digest_of(path: str, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _architecture(teacher: Teacher) -> Any:
    from nni_robust.architecture import load_architecture

    return load_architecture(teacher.architecture)


def has_weights(teacher: Teacher) -> bool:
    """Whether it comes with trained weights."""
    name = teacher.architecture
    if teacher.weights is not None or name.startswith(ROBUSTBENCH):
        return True
    return bool(_architecture(teacher).trained)


def build_teacher(teacher: Teacher, num_classes: int, *, pretrained: bool) -> nn.Module:
    """The network of a teacher that is none of RobustBench's, in training mode."""
    network: nn.Module = _architecture(teacher).build(num_classes, pretrained=pretrained)
    return network


def from_robustbench(name: str, num_classes: int, role: str = "teacher") -> nn.Module:
    """A network of the RobustBench package, downloaded by it on first use.

    Parameters
    ----------
    name
        Such as ``"robustbench:Rice2020Overfitting"``.
    num_classes
        Says which of its data sets it is for.
    role
        What the network is here, for messages.

    Raises
    ------
    UserError
        If the package is missing, knows no such network, or cannot load it.
    """
    if num_classes not in _BENCHMARKS:
        raise UserError(
            f"{role} '{name}' is not allowed with {num_classes} classes; RobustBench has networks "
            f"for {', '.join(map(str, _BENCHMARKS))}"
        )
    try:
        package = _robustbench()
    except ImportError as e:
        raise UserError(
            f"{role} '{name}' needs RobustBench: pip install 'nni-robust[robustbench]' ({e})"
        ) from None
    import torch

    folder = Path(torch.hub.get_dir(), "robustbench")
    for threat in ("Linf", "L2"):
        try:
            network: nn.Module = package.load_model(
                name.removeprefix(ROBUSTBENCH),
                model_dir=str(folder),
                dataset=_BENCHMARKS[num_classes],
                threat_model=threat,
            )
        except KeyError:  # no such name for this threat
            continue
        except Exception as e:  # whatever a download or another package's code raises
            raise UserError(
                f"{role} '{name}' could not be loaded: {type(e).__name__}: "
                f"{' '.join(str(e).split())}"
            ) from e
        return network
    raise UserError(
        f"{role} '{name}': RobustBench knows no such network for {_BENCHMARKS[num_classes]}"
    )


def _robustbench() -> Any:
    """RobustBench's module ``utils``.

    Version 1.1.1 on PyPI imports AutoAttack by the name that it has in its authors' repository, but
    depends on a copy with another name.
    """
    from nni_robust.data import import_torchvision

    import_torchvision()  # before RobustBench does, which knows no repair of a mismatched build
    try:
        return importlib.import_module("robustbench.utils")
    except ModuleNotFoundError as e:
        if e.name != "autoattack":
            raise
        sys.modules["autoattack"] = importlib.import_module("pyautoattack")
        return importlib.import_module("robustbench.utils")


def _ready(
    network: nn.Module, teacher: Teacher, num_classes: int, input_shape: Sequence[int]
) -> nn.Module:
    """The network frozen, once it has shown that it fits."""
    import torch

    network = network.eval().requires_grad_(False)
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError) as e:
        raise UserError(
            f"teacher '{teacher.architecture}' does not take pictures of shape "
            f"{tuple(input_shape)}: {' '.join(str(e).split())}"
        ) from e
    if logits.shape != (1, num_classes):
        raise UserError(
            f"teacher '{teacher.architecture}' has {logits.shape[-1]} outputs; the task has "
            f"{num_classes} classes"
        )
    return network
