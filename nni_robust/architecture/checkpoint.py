"""Convert a training checkpoint of somebody else's program into weights that we can use.

Checkpoints of research code (``.pth``, ``.pth.tar``) are pickles, and a pickle can run any program
when it is read. Many hold more than tensors: those of RobNet (https://github.com/gmh14/RobNets at
0fbcb03, main.py) a scheduler object and with it the whole optimizer, so torch's restricted reader
refuses them.

Here such objects are never made. The restricted reader gets an inert stand-in for every class or
function that it does not know, which takes any arguments and keeps nothing; only tensors in plain
containers remain. No code of the file is imported or called.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from nni_robust.architecture._architecture import Architecture
from nni_robust.architecture._zoo import load_architecture
from nni_robust.errors import UserError
from nni_robust.training.weights import (
    SAFE_TORCH,
    optional_names,
    plain_names,
    plain_tensors,
    unwrapped,
    write_tensors,
)

__all__ = ["Conversion", "convert_checkpoint", "read_checkpoint"]

#: Modules that no checkpoint has a use for; torch blocks them as well.
_BLOCKED = ("os", "posix", "nt", "sys")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What :func:`convert_checkpoint` did.

    Parameters
    ----------
    architecture
        The architecture with its weights, as it was saved.
    left_out
        Classes and functions whose objects were in the file and were not read, sorted.
    outputs
        Outputs of the classifier in the file.
    """

    architecture: Architecture
    left_out: tuple[str, ...]
    outputs: int


def convert_checkpoint(
    path: str | Path,
    architecture: Architecture | str | Path,
    out: str | Path,
    *,
    num_classes: int | None = None,
    first_classes: bool = False,
) -> Conversion:
    """Write an architecture with the weights of a checkpoint: a YAML file and a safetensors file.

    Names in the checkpoint must be those of the network's state dict, as they are for the authors'
    RobNets and wide residual networks, and for RobustBench's ``Huang2022Revisiting_WRN-A4`` (here
    ``wrn-a4-robustbench``); ``module.`` before all of them, as ``DataParallel`` writes it, is taken
    off. Every tensor must be there and fit, and none may be left over; only constants of an input
    normalisation may be missing.

    Parameters
    ----------
    path
        The checkpoint: a dictionary of tensors, or one that has it under ``state_dict`` or
        ``model_state_dict``.
    architecture
        What the weights are of: an architecture, a name in the zoo, or the path of its file.
    out
        File to write, ``.yaml`` or ``.json``; the weights get the same name with
        ``.safetensors``.
    num_classes
        Outputs of the network; None is the architecture's own number.
    first_classes
        Drop the outputs beyond `num_classes`, where the file's classifier has more. The authors'
        SVHN networks need that: they have 100 outputs, of which 10 were used.

    Raises
    ------
    UserError
        If the file is missing, damaged or unsafe to read, or does not fit.

    Examples
    --------
    >>> convert_checkpoint("RobNet_free_cifar10.pth.tar", "robnet-free", "robnet-free.yaml")
    ... # doctest: +SKIP

    after which ``nni-robust evaluate robnet-free.yaml --dataset cifar10`` attacks it.
    """
    path, out = Path(path), Path(out)
    if out.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"'{out}': an architecture is saved as .yaml, .yml or .json")
    if not isinstance(architecture, Architecture):
        architecture = load_architecture(architecture)
    if num_classes is not None:
        architecture = dataclasses.replace(architecture, num_classes=num_classes)
    tensors, left_out = read_checkpoint(path)
    tensors = plain_names(tensors)
    with torch.device("meta"):
        network = architecture.build(pretrained=False)
    outputs = _fit_classifier(network, tensors, architecture, path, first_classes)
    _check_fit(network, tensors, f"'{path}' does not fit '{architecture.name}'")

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    note = architecture.provenance.get("note", "")
    origin = f"Weights converted from {path.name} (SHA-256 {digest})."
    weights = out.with_suffix(".safetensors")
    write_tensors(weights, plain_tensors(tensors), {"source": path.name, "sha256": digest})
    architecture = dataclasses.replace(
        architecture,
        weights=weights,
        provenance={**architecture.provenance, "note": f"{note} {origin}".strip()},
    )
    architecture.save(out)
    return Conversion(architecture, left_out, outputs)


def _fit_classifier(
    network: nn.Module,
    tensors: dict[str, Tensor],
    architecture: Architecture,
    path: Path,
    first_classes: bool,
) -> int:
    """Cut the classifier in `tensors` to the network's outputs; return how many it had."""
    wanted = architecture.num_classes
    heads = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == wanted
    ]
    names = [f"{heads[-1]}.{part}" for part in ("weight", "bias")] if heads else []
    found = [name for name in names if name in tensors and tensors[name].dim()]
    if not found or tensors[found[0]].shape[0] == wanted:
        return wanted
    outputs: int = tensors[found[0]].shape[0]
    if not first_classes or outputs < wanted:
        more = f", first_classes=True keeps the first {wanted}" if outputs > wanted else ""
        raise UserError(
            f"'{path}' has a classifier of {outputs} outputs, '{architecture.name}' has {wanted}: "
            f"num_classes={outputs} keeps them all{more}"
        )
    for name in found:
        tensors[name] = tensors[name][:wanted]
    return outputs


def _check_fit(network: nn.Module, tensors: dict[str, Tensor], trouble: str) -> None:
    """Refuse tensors that are not exactly those of the network; give them its precision."""
    state, optional = network.state_dict(), optional_names(network)
    for name, tensor in state.items():
        if name not in tensors and name in optional:
            continue
        if name not in tensors:
            raise UserError(f"{trouble}: the file has no '{name}'")
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{trouble}: '{name}' has shape {tuple(tensors[name].shape)} in the file, "
                f"{tuple(tensor.shape)} is needed"
            )
        tensors[name] = tensors[name].to(tensor.dtype)
    extra = next((name for name in tensors if name not in state), None)
    if extra is not None:
        raise UserError(f"{trouble}: the network has no '{extra}'")


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of a checkpoint (on the CPU), and the names of what else was in it and was not read.

    Parameters
    ----------
    path
        File that ``torch.save`` wrote, in its present or its old form (before torch 1.6).

    Raises
    ------
    UserError
        If the file is missing, damaged, holds no dictionary of tensors, or names functions of the
        operating system; or if this torch has known holes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint '{path}'")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH:
        raise UserError(
            f"'{path}' is a pickle, which torch {torch.__version__} cannot read safely; torch 2.10 "
            "or newer can"
        )
    met: set[str] = set()
    try:
        names = _global_names(path)
        blocked = sorted(name for name in names if name.split(".")[0] in _BLOCKED)
        if blocked:
            raise UserError(
                f"'{path}' is no checkpoint that can be read safely: to read it is to call "
                f"{', '.join(blocked)}"
            )
        stand_ins: list[Any] = [(_stand_in(name, met), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as e:  # a damaged pickle can fail in any way
        raise UserError(
            f"'{path}' is no checkpoint that can be read safely: it is damaged or was not written "
            "by torch.save (if you trust it, load it with the program that wrote it and save "
            "nothing but its state_dict)"
        ) from e
    value = unwrapped(value)
    if not isinstance(value, dict) or not value:
        raise UserError(f"'{path}' holds no dictionary of tensors")
    wrong = next((name for name, t in value.items() if not isinstance(t, Tensor)), None)
    if wrong is not None:
        raise UserError(f"'{path}' holds no dictionary of tensors: '{wrong}' is none")
    return {str(name): tensor.detach() for name, tensor in value.items()}, tuple(sorted(met))


def _stand_in(name: str, met: set[str]) -> type:
    """A class for the restricted reader to use in place of `name`; its objects are empty."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        met.add(name)
        # The reader fills what it takes for a dictionary only if it is really one.
        return {} if name == "collections.defaultdict" else object.__new__(cls)

    def ignore(self: object, state: object) -> None:
        pass

    return type("StandIn", (), {"__new__": new, "__setstate__": ignore})


def _global_names(path: Path) -> set[str]:
    """Every class and function that the file's pickle names, found without unpickling."""
    names = set()
    with path.open("rb") as file:
        for stream in _pickles(file):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    module, name = str(argument).split(" ", 1)
                    # torch writes the names of Python 2 and reads them as those of Python 3.
                    if (module, name) in NAME_MAPPING:
                        module, name = NAME_MAPPING[module, name]
                    else:
                        module = IMPORT_MAPPING.get(module, module)
                    names.add(f"{module}.{name}")
    return names


def _pickles(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The pickles of a file that ``torch.save`` wrote, each to be read up to its end."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    yield io.BytesIO(archive.read(name))
        return
    file.seek(0)
    for _ in range(4):  # a magic number, the format's version, facts about the machine, the object
        yield file
