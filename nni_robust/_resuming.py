"""The folder of one evaluation: which pictures each attack has had, to go on after a kill.

``evaluation.json`` says of what; each attack has a folder of its own beside it, as
:mod:`nni_robust.attacks._progress` writes it. AutoAttack keeps its own, stage by stage.
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
from nni_robust.attacks._progress import AttackProgress, ProgressFolder, network_hash
from nni_robust.errors import DamageWarning, UserError
from nni_robust.threat import ThreatModel

__all__ = ["SuiteProgress", "progress_folder"]

_FILE = "evaluation.json"
_PLAIN = (str, int, float, bool, type(None))


class SuiteProgress:
    """What attacks found in earlier calls of one evaluation; a context that locks its folder.

    Attacks may be added from call to call. The data may grow or shrink at its end.

    Parameters
    ----------
    folder
        Where; made if it is missing.
    model, attacks, threat, seed
        As :func:`nni_robust.evaluate` runs them.

    Attributes
    ----------
    attacks
        The attacks to run: those that keep what they find by themselves do so in this folder.

    Raises
    ------
    UserError
        If the folder holds the evaluation of something else, cannot be made, or is in use.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        attacks: Sequence[Attack],
        threat: ThreatModel,
        seed: int,
    ) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"folder: '{folder}' cannot be made: {e.strerror}") from None
        self._lock = filelock.FileLock(str(self.folder / "lock"), timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UserError(f"folder: '{folder}' is in use by another evaluation") from None
        try:
            remove_temporaries(self.folder, below=True)
            settings = {attack.key: _settings(attack) for attack in attacks}
            self._check(network_hash(model), threat, seed, settings)
            self.attacks: list[Attack] = []
            self._folders: dict[str, ProgressFolder] = {}
            for attack in attacks:
                place = self.folder / _name(attack.key)
                own = attack.keeping_in(place)
                self.attacks.append(attack if own is None else own)
                if own is None:
                    made = ProgressFolder(place, model, [settings[attack.key]], seed)
                    self._folders[attack.key] = made
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> SuiteProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def batch(self, attack: Attack, x: Tensor, y: Tensor, index: Tensor) -> AttackProgress | None:
        """What is known of pictures under an attack; None for one that sees to it by itself."""
        folder = self._folders.get(attack.key)
        return None if folder is None else folder.batch(x, x, y, index)

    def _check(self, network: str, threat: ThreatModel, seed: int, attacks: dict[str, str]) -> None:
        """Refuse what does not fit the folder; write down what it holds from now on."""
        ours: dict[str, Any] = {
            "network": network,
            "threat": {"norm": threat.norm, "eps": threat.eps},
            "seed": seed,
        }
        before = self._before()
        known = before.get("attacks") if before else None
        known = dict(known) if isinstance(known, Mapping) else {}
        if before:
            other = [f"another {key}" for key, value in ours.items() if before.get(key) != value]
            changed = [key for key, text in attacks.items() if known.get(key, text) != text]
            other += [f"{key} with other settings" for key in changed]
            if other:
                raise UserError(
                    f"folder: '{self.folder}' holds the evaluation of {' and '.join(other)}; give "
                    "another folder"
                )
        record = {**ours, "attacks": {**known, **attacks}}
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


def progress_folder(parent: Path, model: nn.Module) -> Path:
    """A network's own folder below another: other weights make a new one, and are not refused."""
    return parent / network_hash(model)[:16]


def _name(key: str) -> str:
    """The attack's key as the name of a folder; a few digits keep similar keys apart."""
    digits = hashlib.sha256(key.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9.+-]', '_', key)}-{digits}"


def _settings(attack: Attack) -> str:
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
