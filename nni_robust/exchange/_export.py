"""Writing the folder of a trained network, and loading one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.architecture import load_architecture
from nni_robust.config import as_mapping
from nni_robust.errors import UserError
from nni_robust.store import atomic_path, write_json, write_text

from ._card import card
from ._folder import CARD, CONFIG, RESULTS, WEIGHTS, config_of, is_folder, sha256_of
from ._records import Trained

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Exported", "export_folder", "load"]

RESULTS_FORMAT = "nni-robust/results/1"

#: Where all is built, inside the folder so that it is on the same disk; gone when it ends.
_STAGING = ".nni-robust-export.tmp"

#: What may be made besides: the file, and what the card says of it.
EXTRAS = {
    "onnx": ("model.onnx", "for ONNX runtimes; the number of pictures is free"),
    "torch-export": ("model.pt2", "for torch.export.load; the number of pictures is free"),
    "standalone": ("network.py", "builds and loads the network with torch and safetensors alone"),
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Parameters
    ----------
    folder
        Where.
    files
        Names of all files.
    differences
        Of each extra form: the largest difference of a logit from the network's.
    pictures
        What logits were compared on, in words; empty without extra forms.
    """

    folder: Path
    files: list[str]
    differences: dict[str, float]
    pictures: str = ""


def load(source: str | Path) -> nn.Module:
    """A trained network: a plain ``nn.Module`` in evaluation mode, on the CPU.

    Parameters
    ----------
    source
        A folder that ``nni-robust export`` wrote, or an architecture file with weights.

    Raises
    ------
    UserError
        If there is no such network, it has no weights, or they are damaged or were swapped.
    """
    architecture = load_architecture(source)
    if not architecture.trained:
        raise UserError(
            f"'{source}' has no trained weights; nni_robust.load_architecture(…).build() gives an "
            "untrained network"
        )
    return architecture.build().eval()


def export_folder(
    trained: Trained,
    folder: str | Path,
    *,
    extras: Sequence[str] = (),
    real: Any = None,
    real_name: str = "",
) -> Exported:
    """Write a trained network with its records as a folder that others can load.

    Parameters
    ----------
    trained
        The network, see :func:`read_trained`.
    folder
        Where; made where missing. A folder that holds something else is refused. It changes only
        once all is made and checked.
    extras
        Of ``"onnx"``, ``"torch-export"`` and ``"standalone"``. Each is checked against the network
        on random and real pictures, and refused where it differs.
    real
        Real pictures for that check, (N, C, H, W), float in [0, 1], or None.
    real_name
        What they are.

    Raises
    ------
    UserError
        If the folder is not free, the weights do not fit, an extra form cannot be made, needs a
        package that is missing, or differs from the network.
    """
    folder, architecture = Path(folder), trained.architecture
    if folder.is_dir() and not is_folder(folder) and set(os.listdir(folder)) - {_STAGING}:
        raise UserError(f"--to '{folder}' holds something else; choose an empty or a new folder")
    if is_folder(folder) and architecture.weights == folder / WEIGHTS:
        raise UserError(f"--to '{folder}' is what is exported; choose another folder")
    from nni_robust.training.weights import save_weights

    network = architecture.build().eval()
    with _staged(folder) as staging:
        weights = staging / WEIGHTS
        if architecture.weights is not None and architecture.weights.suffix == ".safetensors":
            with atomic_path(weights) as temporary:
                shutil.copyfile(architecture.weights, temporary)
        else:
            save_weights(network, weights)
        differences, said = _extras(trained, staging, network, extras, real, real_name)
        config, cost = config_of(architecture, weights), architecture.cost()
        write_json(
            staging / RESULTS,
            {
                "format": RESULTS_FORMAT,
                "architecture": architecture.name,
                "cost": as_mapping(cost),
                "training": trained.training,
                "evaluations": list(trained.evaluations),
            },
        )
        lines = [f"`{EXTRAS[name][0]}` {EXTRAS[name][1]}; {text}" for name, text in said.items()]
        write_text(staging / CARD, card(trained, cost, config, lines))
        write_json(staging / CONFIG, config)
    files = [WEIGHTS, CONFIG, RESULTS, CARD, *(EXTRAS[name][0] for name in said)]
    return Exported(folder, files, differences, _pictures(real, real_name) if said else "")


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give a folder to build in; its files move to `folder` on a clean exit, and never else."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    try:
        staging.mkdir(parents=True)
        yield staging
        (folder / CONFIG).unlink(missing_ok=True)  # until all is there, it is no network
        for name, _ in EXTRAS.values():
            (folder / name).unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == CONFIG):
            os.replace(path, folder / path.name)
        staging.rmdir()
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: not ours to remove
            for path in missing:
                path.rmdir()
        raise


def _pictures(real: Any, name: str) -> str:
    real_part = f" and {len(real)} of {name}" if real is not None else ""
    return f"random pictures{real_part}"


def _extras(
    trained: Trained,
    folder: Path,
    network: nn.Module,
    extras: Sequence[str],
    real: Any,
    real_name: str,
) -> tuple[dict[str, float], Mapping[str, str]]:
    """Write and check the extra forms; the largest differences, and a clause on each."""
    from . import _forms
    from .standalone import load_standalone, standalone_source

    shape, differences, said = trained.architecture.input_shape, {}, {}
    for extra in extras:
        path = folder / EXTRAS[extra][0]
        if extra == "onnx":
            forward = _forms.write_onnx(network, shape, path)
        elif extra == "torch-export":
            forward = _forms.write_program(network, shape, path)
        else:
            classes, sha = trained.architecture.num_classes, sha256_of(folder / WEIGHTS)
            write_text(path, standalone_source(network, shape, classes, sha, path.name))
            forward = load_standalone(path)
        difference = _forms.compare(network, forward, shape, real, what=extra)
        differences[extra] = difference
        said[extra] = (
            f"largest difference of a logit on {_pictures(real, real_name)}: {difference:.1e}"
        )
    return differences, said
