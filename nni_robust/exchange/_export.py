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
from ._earlier import BEFORE, ENTRY, Earlier, is_ours, read_earlier
from ._folder import CARD, CONFIG, RESULTS, WEIGHTS, config_of, is_folder, sha256_of
from ._records import Trained
from .robustbench import leaderboard_entry

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
    trained
        The records that were written, those of an earlier export of the same weights among them.
    entry_belongs
        Where ``robustbench.json`` belongs in RobustBench's repository; empty without one.
    kept, removed
        Files of an earlier export that stayed, as it was of the same weights, and that went.
    replaced
        Name of the network that was there, if it was another or had other weights; else empty.
    saved
        Files of it that had been changed by hand: name to where the old text is now.
    """

    folder: Path
    files: list[str]
    differences: dict[str, float]
    pictures: str
    trained: Trained
    entry_belongs: str = ""
    kept: list[str] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    replaced: str = ""
    saved: dict[str, str] = dataclasses.field(default_factory=dict)


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
    robustbench: bool = False,
) -> Exported:
    """Write a trained network with its records as a folder that others can load.

    What an earlier export of the same weights has besides (other forms, more figures) stays.

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
    robustbench
        Also write ``robustbench.json``, see :func:`leaderboard_entry`.

    Raises
    ------
    UserError
        If the folder is not free, the weights do not fit, an extra form cannot be made, needs a
        package that is missing, or differs from the network; or if there is no entry for
        RobustBench.
    """
    folder, architecture = Path(folder), trained.architecture
    names = [WEIGHTS, CONFIG, RESULTS, CARD, *(file for file, _ in EXTRAS.values()), ENTRY]
    if folder.is_dir() and not is_ours(folder, names, _STAGING):
        raise UserError(f"--to '{folder}' holds something else; choose an empty or a new folder")
    if is_folder(folder) and architecture.weights == folder / WEIGHTS:
        raise UserError(f"--to '{folder}' is what is exported; choose another folder")
    from nni_robust.training.weights import save_weights

    network = architecture.build().eval()
    with _staged(folder) as (staging, gone):
        weights = staging / WEIGHTS
        if architecture.weights is not None and architecture.weights.suffix == ".safetensors":
            with atomic_path(weights) as temporary:
                shutil.copyfile(architecture.weights, temporary)
        else:
            save_weights(network, weights)
        config, cost = config_of(architecture, weights), architecture.cost()
        earlier = read_earlier(folder, config)
        trained = earlier.added_to(trained)
        belongs, entry = leaderboard_entry(trained) if robustbench else ("", None)
        if entry is not None:
            write_json(staging / ENTRY, entry)
        differences = _extras(trained, staging, network, extras, real)
        pictures = _pictures(real, real_name) if differences else ""
        made = [EXTRAS[name][0] for name in differences] + [ENTRY] * (entry is not None)
        kept, removed = earlier.divide([*(file for file, _ in EXTRAS.values()), ENTRY], made)
        records: dict[str, dict[str, Any]] = {name: earlier.record(name) for name in kept}
        for name, difference in differences.items():
            records[EXTRAS[name][0]] = {"difference": difference, "compared_on": pictures}
        write_text(staging / CARD, card(trained, cost, config, _lines(records, earlier, kept)))
        for name in (CARD, *made):
            records.setdefault(name, {})["sha256"] = sha256_of(staging / name)
        write_json(
            staging / RESULTS,
            {
                "format": RESULTS_FORMAT,
                "architecture": architecture.name,
                "cost": as_mapping(cost),
                "training": trained.training,
                "evaluations": list(trained.evaluations),
                "files": records,
            },
        )
        write_json(staging / CONFIG, config)
        saved = earlier.save_edited([CARD, *made, *removed], staging)
        if not earlier.same:  # until all is there, it is no network
            gone += [CONFIG, *removed]
    return Exported(
        folder=folder,
        files=[WEIGHTS, CONFIG, RESULTS, CARD, *made],
        differences=differences,
        pictures=pictures,
        trained=trained,
        entry_belongs=belongs,
        kept=kept,
        removed=removed,
        replaced="" if earlier.same else str(earlier.results.get("architecture", "")),
        saved=saved,
    )


def _lines(records: Mapping[str, Any], earlier: Earlier, kept: Sequence[str]) -> list[str]:
    """What the card says of the other forms."""
    lines = []
    for file, what in EXTRAS.values():
        record = records.get(file)
        if record is None:
            continue
        if file in kept and earlier.edited(file):
            text = "changed by hand since it was compared with the network"
        elif "difference" in record:
            difference, pictures = record["difference"], record["compared_on"]
            text = f"largest difference of a logit on {pictures}: {difference:.1e}"
        else:
            text = "of an earlier export, which did not record how far it is from the network"
        lines.append(f"`{file}` {what}; {text}")
    return lines


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Give a folder to build in, and a list for the old files that are to go first.

    The new files move to `folder` on a clean exit, and never else.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    staging, gone = folder / _STAGING, list[str]()
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    try:
        staging.mkdir(parents=True)
        yield staging, gone
        # Saved texts come first: at no time are they in neither place. Then what marks an export.
        new = sorted((path.name for path in staging.iterdir()), key=_turn)
        saved = [name for name in new if BEFORE in name]
        for name in saved:
            os.replace(staging / name, folder / name)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        for name in new[len(saved) :]:
            os.replace(staging / name, folder / name)
        staging.rmdir()
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: not ours to remove
            for path in missing:
                path.rmdir()
        raise


def _turn(name: str) -> int:
    return 0 if BEFORE in name else {RESULTS: 1, CONFIG: 3}.get(name, 2)


def _pictures(real: Any, name: str) -> str:
    real_part = f" and {len(real)} of {name}" if real is not None else ""
    return f"random pictures{real_part}"


def _extras(
    trained: Trained, folder: Path, network: nn.Module, extras: Sequence[str], real: Any
) -> dict[str, float]:
    """Write and check the extra forms; the largest difference of each."""
    from . import _forms
    from .standalone import load_standalone, standalone_source

    shape, differences = trained.architecture.input_shape, {}
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
        differences[extra] = _forms.compare(network, forward, shape, real, what=extra)
    return differences
