"""Weights of a network in a file: safetensors, which can hold tensors and nothing else.

Pickled weights (``.pt``, ``.pth``) of other programs are read by torch's restricted unpickler
only, and only by a torch in which its known holes are closed (CVE-2025-32434, CVE-2026-24747).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nni_robust.errors import UserError
from nni_robust.store import atomic_path

__all__ = [
    "SAFE_TORCH",
    "load_weights",
    "optional_names",
    "plain_names",
    "plain_tensors",
    "read_weights",
    "save_weights",
    "unwrapped",
    "write_tensors",
]

#: First torch whose restricted unpickler has no known hole.
SAFE_TORCH = (2, 10)

#: Keys under which training programs keep the network's tensors, besides their own bookkeeping.
_WRAPPERS = ("state_dict", "model_state_dict")


def plain_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies as safetensors wants them: on the CPU, contiguous, no two in the same memory."""
    return {
        name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, t in tensors.items()
    }


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights and buffers of a network in one step.

    Parameters
    ----------
    model
        Any network.
    path
        File to write, ending in ``.safetensors``; its folder is made.
    metadata
        Short texts to keep with the weights.

    Raises
    ------
    UserError
        If the file has another ending.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"weights file '{path}': only the ending '.safetensors' is allowed")
    write_tensors(path, plain_tensors(model.state_dict()), metadata or {})


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write plain tensors (see :func:`plain_tensors`) and short texts in one step."""
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would let nobody but us read the file
        save_file(dict(tensors), temporary, dict(metadata))
        temporary.chmod(mode)


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Fill a network with weights from a file; every tensor must be there and fit.

    Only constants that the network sets itself may be missing (see :func:`optional_names`), as they
    are in published weights of networks that normalise their input.

    Parameters
    ----------
    model
        The network; filled in place, on its device. Unchanged where the file does not fit.
    path
        A ``.safetensors`` file; or ``.pt``, ``.pth`` with a dictionary of tensors (or one under
        the key ``state_dict`` or ``model_state_dict``). Names may begin with ``module.``, as
        ``DataParallel`` writes them.

    Returns
    -------
    dict[str, str]
        The texts that were saved with the weights.

    Raises
    ------
    UserError
        If the file is missing, damaged, unsafe to read, or does not fit the network.
    """
    tensors, metadata = read_weights(path)
    wanted, optional = model.state_dict(), optional_names(model)
    if tensors.keys().isdisjoint(wanted):
        tensors = plain_names(tensors)
    for name, tensor in wanted.items():
        if name not in tensors and name in optional:
            tensors[name] = tensor
        if name not in tensors:
            raise UserError(f"'{path}' does not fit the network: it has no '{name}'")
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"'{path}' does not fit the network: '{name}' has shape "
                f"{tuple(tensors[name].shape)}, the network needs {tuple(tensor.shape)}"
            )
    for name in tensors:
        if name not in wanted:
            raise UserError(f"'{path}' does not fit the network: the network has no '{name}'")
    model.load_state_dict(tensors)
    return metadata


def optional_names(model: nn.Module) -> set[str]:
    """State names that weights may lack: what modules list as ``constant_buffers``.

    Those are buffers that the constructor fills for good, such as mean and standard deviation of an
    input normalisation.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "constant_buffers", ())
    }


def unwrapped(value: Any) -> Any:
    """The dictionary of tensors inside a training checkpoint; anything else as it is."""
    for key in _WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            return value[key]
    return value


def plain_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors without ``module.`` before their names, where all have it."""
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors (on the CPU) and texts of a weights file, see :func:`load_weights`.

    Raises
    ------
    UserError
        If the file is missing, damaged or unsafe to read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file '{path}'")
    if path.suffix in (".pt", ".pth"):
        return _read_pickled(path), {}
    if path.suffix != ".safetensors":
        raise UserError(
            f"weights file '{path}': the ending '{path.suffix}' is not allowed; "
            "allowed: .safetensors, .pt, .pth (`nni-robust convert` reads training checkpoints)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as e:
        raise UserError(f"'{path}' is no readable safetensors file: {e}") from None


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH:
        raise UserError(
            f"'{path}' holds pickled weights, which torch {torch.__version__} cannot read safely; "
            "torch 2.10 or newer can"
        )
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own sentence advises weights_only=False, which would run the file's code.
        raise UserError(
            f"'{path}' is damaged or holds more than tensors; `nni-robust convert` reads the "
            "tensors of such a checkpoint safely"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as e:
        # A KeyError of torch's names a byte of the file, and an EOFError nothing.
        reason = str(e).splitlines()[0] if str(e) else ""
        if reason and isinstance(e, (RuntimeError, ValueError)):
            raise UserError(f"'{path}' is damaged: {reason}") from None
        raise UserError(
            f"'{path}' is damaged: it is no file of weights that torch.save wrote "
            f"({path.stat().st_size} bytes)"
        ) from None
    value = unwrapped(value)
    if not isinstance(value, dict) or not all(isinstance(t, torch.Tensor) for t in value.values()):
        raise UserError(f"'{path}' holds no dictionary of tensors")
    return {str(name): tensor for name, tensor in value.items()}
