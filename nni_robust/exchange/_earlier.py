"""What an earlier export left in a folder, and what becomes of it when the folder is written again.

Of the same network with the same weights, everything stays that is not made anew. Of others,
nothing stays. A file that somebody changed since is never lost: its old text is kept beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nni_robust.errors import UserError
from nni_robust.store import read_json

from ._folder import CARD, CONFIG, RESULTS, is_folder, sha256_of
from ._records import Trained

__all__ = ["BEFORE", "ENTRY", "Earlier", "is_ours", "read_earlier"]

#: Ends the name of an old file that was changed by hand.
BEFORE = ".before"

#: An entry for RobustBench's leaderboard.
ENTRY = "robustbench.json"

#: Where texts are for the user to fill in; taken for changed where no record tells.
_TO_FILL_IN = (CARD, ENTRY)

#: What says which network it is, whatever it is called and wherever it comes from.
_NETWORK = ("space", "space_args", "sample", "code", "num_classes", "input_shape")


@dataclasses.dataclass(frozen=True)
class Earlier:
    """An earlier export.

    Parameters
    ----------
    folder
        Where it lies.
    same
        Whether it is of the network and weights that are exported now.
    results
        Its ``results.json``.
    """

    folder: Path
    same: bool = False
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def added_to(self, trained: Trained) -> Trained:
        """The records of a network with what only the earlier export knows of it."""
        if not self.same:
            return trained
        new = list(trained.evaluations)
        evaluations = []
        for old in self.results.get("evaluations") or []:
            again = [e for e in new if _measured(e) == _measured(old)]
            new = [e for e in new if e not in again]
            evaluations += again or [old]
        training = trained.training or self.results.get("training")
        return dataclasses.replace(trained, training=training, evaluations=(*evaluations, *new))

    def record(self, name: str) -> dict[str, Any]:
        """What is recorded of one of its files: ``sha256``, and what a form was compared on."""
        found = (self.results.get("files") or {}).get(name)
        return dict(found) if isinstance(found, Mapping) else {}

    def edited(self, name: str) -> bool:
        """Whether a file is there and not as it was written."""
        path, wanted = self.folder / name, self.record(name).get("sha256")
        if not path.is_file():
            return False
        return name in _TO_FILL_IN if wanted is None else sha256_of(path) != wanted

    def divide(self, names: Collection[str], made: Collection[str]) -> tuple[list[str], list[str]]:
        """Of files that may be there besides: those that stay, and those that go."""
        there = [name for name in names if name not in made and (self.folder / name).is_file()]
        return (there, []) if self.same else ([], there)

    def save_edited(self, names: Collection[str], staging: Path) -> dict[str, str]:
        """Copy those files that were changed by hand to `staging`; old name to new name."""
        saved = {}
        for name in names:
            if self.edited(name):
                numbers = itertools.chain([""], map(str, itertools.count(2)))
                free = (f"{name}{BEFORE}{n}" for n in numbers)
                saved[name] = next(new for new in free if not (self.folder / new).exists())
                shutil.copyfile(self.folder / name, staging / saved[name])
        return saved


def is_ours(folder: Path, names: Collection[str], staging: str) -> bool:
    """Whether an export may go to a folder that is there: nothing of others is in its way.

    Parameters
    ----------
    folder
        An export, also one that a kill left without its ``config.json``, or empty.
    names
        Files that an export may write.
    staging
        Folder in it that an export which was killed leaves.
    """
    there = {path.name for path in folder.iterdir()}
    if CONFIG in there:
        return _format(folder / CONFIG).startswith("nni-robust/model/")
    others = {name for name in there if name.partition(BEFORE)[0] not in names} - {staging}
    killed = staging in there or _format(folder / RESULTS).startswith("nni-robust/results/")
    return not others and (killed or not there)


def _format(path: Path) -> str:
    with contextlib.suppress(UserError):
        value = read_json(path) if path.is_file() else None
        return str(value.get("format")) if isinstance(value, Mapping) else ""
    return ""


def read_earlier(folder: Path, config: Mapping[str, Any]) -> Earlier:
    """What lies in a folder; nothing of use where it is no export or is damaged.

    Parameters
    ----------
    folder
        Where an export is to be written.
    config
        The ``config.json`` that it will have.
    """
    try:
        old = read_json(folder / CONFIG) if is_folder(folder) else {}
        results = read_json(folder / RESULTS) if (folder / RESULTS).is_file() else {}
    except UserError:
        return Earlier(folder)
    if not isinstance(old, Mapping) or not isinstance(results, Mapping):
        return Earlier(folder)
    return Earlier(folder, bool(old) and _network(old) == _network(config), results)


def _network(config: Mapping[str, Any]) -> Any:
    architecture, weights = config.get("architecture"), config.get("weights")
    if not isinstance(architecture, Mapping) or not isinstance(weights, Mapping):
        return None
    values = [weights.get("sha256"), *(architecture.get(key) for key in _NETWORK)]
    return json.loads(json.dumps(values))  # tuples of one are lists of the other


def _measured(evaluation: Mapping[str, Any]) -> Any:
    """What an evaluation measured; a new one of the same replaces the old."""
    keys = ("source", "dataset", "split", "pictures", "threat", "seed")
    return [*(evaluation.get(key) for key in keys), sorted(evaluation.get("metrics") or {})]
