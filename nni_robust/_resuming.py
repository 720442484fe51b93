"""The folder of one evaluation: what is known already of each picture, to go on after a kill.

``evaluation.json`` says of what; each part (an attack, a spectrum, a corruption) has a folder of
its own beside it, as :mod:`nni_robust.attacks._progress` writes it. AutoAttack keeps its own,
stage by stage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor, nn

from nni_robust._files import read_json, remove_temporaries, set_aside, write_json
from nni_robust.attacks import Attack
from nni_robust.attacks._progress import BatchProgress, ProgressFolder, network_hash
from nni_robust.errors import DamageWarning, UserError
from nni_robust.threat import ThreatModel

__all__ = [
    "EvaluationFolder",
    "SuiteProgress",
    "attack_text",
    "place_name",
    "progress_folder",
    "refuse_other_files",
]

_FILE = "evaluation.json"
_PLACE = re.compile(r"-[0-9a-f]{6}$")  # as `place_name` ends
_PLAIN = (str, int, float, bool, type(None))


def refuse_other_files(folder: str | Path, option: str = "folder:") -> None:
    """Refuse a folder that holds anything but evaluations: no file of theirs goes beside others.

    Raises
    ------
    UserError
        If it does; named is `option`, and what was found.
    """
    folder = Path(folder)
    if not folder.is_dir() or _is_evaluation(folder):
        return
    for entry in sorted(folder.iterdir()):
        if entry.name == "lock" or entry.name.startswith(f"{_FILE}.damaged"):
            continue
        if entry.name.startswith(f".{_FILE}.") and entry.suffix == ".tmp":
            continue
        below = entry.is_dir() and (_PLACE.search(entry.name) or _is_evaluation(entry))
        if not below and not (entry.is_dir() and all(e.name == "lock" for e in entry.iterdir())):
            raise UserError(
                f"{option} '{folder}' holds something else ('{entry.name}'); give an empty folder, "
                "or that of an earlier evaluation"
            )


def _is_evaluation(folder: Path) -> bool:
    """Whether a folder has the file of an evaluation, damaged or not."""
    try:
        value = read_json(folder / _FILE)
    except UserError:
        return (folder / _FILE).is_file()
    return not isinstance(value, Mapping) or "parts" in value


class EvaluationFolder:
    """What was found in earlier calls of one evaluation; a context that locks its folder.

    Parts may be added from call to call. The data may grow or shrink at its end.

    Parameters
    ----------
    folder
        Where; made if it is missing.
    model
        The network.
    parts
        Settings of each part that is measured, as text, by its name.
    seed
        Of the evaluation.
    threat
        Ball of all parts, where they share one.

    Raises
    ------
    UserError
        If the folder holds the evaluation of something else, cannot be made, or is in use.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        parts: Mapping[str, str],
        seed: int,
        threat: ThreatModel | None = None,
    ) -> None:
        self.folder, self.parts, self.seed = Path(folder), dict(parts), seed
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"folder: '{folder}' cannot be made: {e.strerror}") from None
        refuse_other_files(self.folder)
        self._lock = filelock.FileLock(str(self.folder / "lock"), timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UserError(f"folder: '{folder}' is in use by another evaluation") from None
        try:
            remove_temporaries(self.folder, below=True)
            self._network = network_hash(model)
            self._check(threat)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> EvaluationFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def add(self, parts: Mapping[str, str]) -> None:
        """Further parts, with their settings.

        Raises
        ------
        UserError
            If the folder holds them with others.
        """
        self.parts |= parts
        self._check(None)

    def place(self, name: str) -> Path:
        """Where a part's files are."""
        return self.folder / place_name(name)

    def part(self, name: str) -> ProgressFolder:
        """What is known of one part."""
        return ProgressFolder(self.place(name), self._network, [self.parts[name]], self.seed)

    def _check(self, threat: ThreatModel | None) -> None:
        """Refuse what does not fit the folder; write down what it holds from now on."""
        ours: dict[str, Any] = {"network": self._network, "seed": self.seed}
        if threat is not None:
            ours["threat"] = {"norm": threat.norm, "eps": threat.eps}
        before = self._before() or {}
        known = before.get("parts")
        known = dict(known) if isinstance(known, Mapping) else {}
        other = [f"another {key}" for key, value in ours.items() if before.get(key, value) != value]
        changed = [name for name, text in self.parts.items() if known.get(name, text) != text]
        other += [f"{name} with other settings" for name in changed]
        if other:
            raise UserError(
                f"folder: '{self.folder}' holds the evaluation of {' and '.join(other)}; give "
                "another folder"
            )
        record = {**before, **ours, "parts": {**known, **self.parts}}
        if record != before:
            write_json(self.folder / _FILE, record)

    def _before(self) -> dict[str, Any] | None:
        path = self.folder / _FILE
        if not path.is_file():
            return None
        try:
            value = read_json(path)
            if isinstance(value, dict):
                return value
            told = f"'{path}' is damaged: it holds no mapping"
        except UserError as e:
            told = str(e)
        aside = set_aside(path)
        warnings.warn(
            DamageWarning(f"{told}; set aside as '{aside.name}' and written again"), stacklevel=5
        )
        return None


class SuiteProgress:
    """What some attacks found in earlier calls.

    Parameters
    ----------
    home
        The evaluation's folder; `names` are parts of it.
    names, attacks
        The attacks, each with a name of its own.

    Attributes
    ----------
    attacks
        The attacks to run: those that keep what they find by themselves do so in this folder.
    """

    def __init__(
        self, home: EvaluationFolder, names: Sequence[str], attacks: Sequence[Attack]
    ) -> None:
        self.attacks: list[Attack] = []
        self._folders: dict[int, ProgressFolder] = {}
        for name, attack in zip(names, attacks, strict=True):
            own = attack.keeping_in(home.place(name))
            self.attacks.append(attack if own is None else own)
            if own is None:
                self._folders[id(attack)] = home.part(name)

    def batch(self, attack: Attack, x: Tensor, y: Tensor, index: Tensor) -> BatchProgress | None:
        """What is known of pictures under an attack; None for one that sees to it by itself."""
        folder = self._folders.get(id(attack))
        return None if folder is None else folder.batch(x, x, y, index)


def progress_folder(parent: Path, model: nn.Module) -> Path:
    """A network's own folder below another: other weights make a new one, and are not refused."""
    return parent / network_hash(model)[:16]


def place_name(name: str) -> str:
    """A name as that of a folder; a few digits keep similar names apart."""
    digits = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9.+-]', '_', name)[-80:]}-{digits}"


def attack_text(attack: Attack) -> str:
    """Everything that an attack says of itself, the same in every process."""
    kind = type(attack)
    public = {
        name: value
        for name, value in sorted(vars(attack).items())
        if not name.startswith("_") and isinstance(value, _PLAIN)
    }
    settings: Any = getattr(attack, "settings", None)
    if dataclasses.is_dataclass(settings):
        settings = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        settings = {k: _text(v) for k, v in sorted(settings.items()) if k != "folder"}
    return (
        f"{kind.__module__}.{kind.__qualname__} {attack.key} {attack.threat.norm} "
        f"{attack.threat.eps!r} {public} {settings}"
    )


def _text(value: Any) -> str:
    """A setting without its address in memory."""
    if callable(value):
        home = value if hasattr(value, "__qualname__") else type(value)
        return f"{home.__module__}.{home.__qualname__}"
    return repr(value)
