"""What is known of pictures so far, in a folder, so that a crash costs one batch.

One safetensors file for each attack (or corruption) and batch, written in one step. A picture is
known by its index; hashes of network and settings, and one of each picture with its label, keep
results of something else out. Safetensors has no checksum, so each file has one of its own.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nni_robust._files import atomic_path, set_aside
from nni_robust.errors import DamageWarning, UserError

__all__ = ["BatchProgress", "Known", "ProgressFolder", "network_hash"]

_PATTERN = "attack-*.safetensors"
_FORMAT = "2"


class Known(NamedTuple):
    """What is known of some pictures under one attack.

    Attributes
    ----------
    adv
        Adversarial pictures, clean ones where none was kept.
    broken, outside
        (N,), bool: misclassified; not inside ball and box.
    tried
        (N,), bool: whether anything is known.
    kept
        (N,), bool: whether the adversarial picture was kept.
    values
        (N, K), float64, on the CPU: numbers that were written with them; 0 where nothing is known.
    """

    adv: Tensor
    broken: Tensor
    outside: Tensor
    tried: Tensor
    kept: Tensor
    values: Tensor


class _Entry(NamedTuple):
    broken: bool
    outside: bool
    adv: Tensor | None
    values: list[float]


class ProgressFolder:
    """Results of one run of attacks, those from before and those to come.

    Parameters
    ----------
    folder
        Where; made if it is missing.
    network
        Its :func:`network_hash`.
    settings
        What is run, as text.
    seed
        Of the random numbers.

    Raises
    ------
    UserError
        If there is no seed, or the folder holds results of another network, settings or seed.
    """

    def __init__(
        self, folder: Path, network: str, settings: Sequence[str], seed: int | None
    ) -> None:
        if seed is None:
            raise UserError("folder: an attack can be resumed only with a seed")
        self.folder = folder
        text = "\n".join(settings)
        self.made = {
            "network": network,
            "settings": hashlib.sha256(text.encode()).hexdigest(),
            "seed": str(seed),
            "format": _FORMAT,
        }
        self._index: dict[Path, list[int]] = {}
        for path in sorted(folder.glob(_PATTERN)):
            self._look(path)

    def batch(self, x: Tensor, pictures: Tensor, y: Tensor, index: Tensor) -> BatchProgress:
        """What is known of one batch.

        Parameters
        ----------
        x, pictures
            (N, C, H, W): clean pictures in the type of the iterates, and in their own.
        y, index
            (N,), int64: labels, and places in the data.

        Raises
        ------
        UserError
            If the folder holds results of other pictures at these places.
        """
        return BatchProgress(self, x, pictures, y, index)

    def read(self, places: Mapping[int, int]) -> list[dict[str, Tensor]]:
        """The files with pictures at these places, whole."""
        paths = [p for p, index in self._index.items() if not places.keys().isdisjoint(index)]
        return [tensors for path in paths if (tensors := self._load(path)) is not None]

    def _load(self, path: Path) -> dict[str, Tensor] | None:
        try:
            with safe_open(path, framework="pt") as f:
                tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
                if (f.metadata() or {}).get("sum") == _checksum(tensors):
                    return tensors
            why: object = "its checksum is wrong"
        except (SafetensorError, OSError) as e:
            why = e
        self._damaged(path, why)
        return None

    def write(self, tensors: dict[str, Tensor]) -> None:
        """One file, in one step, in place of one of the same pictures and attacks."""
        attack, index = tensors["attack"], tensors["index"]
        name = hashlib.sha256(_bytes(torch.stack([attack, index]))).hexdigest()[:16]
        path = self.folder / f"attack-{int(attack[0])}-{name}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={**self.made, "sum": _checksum(tensors)})
        self._index[path] = index.tolist()

    def _look(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as f:
                made, index = f.metadata() or {}, f.get_tensor("index").tolist()
        except (SafetensorError, OSError) as e:
            self._damaged(path, e)
            return
        other = [what for what, value in self.made.items() if made.get(what) != value]
        if other:
            raise UserError(
                f"folder: '{self.folder}' holds the results of "
                f"{' and '.join(_OTHER[what] for what in other)}; give another folder"
            )
        self._index[path] = index

    def _damaged(self, path: Path, why: object) -> None:
        self._index.pop(path, None)
        aside = set_aside(path)
        told = f"'{path}' is damaged ({why}): kept as {aside.name}; its pictures are measured again"
        warnings.warn(DamageWarning(told), stacklevel=4)


_OTHER = {
    "network": "another network",
    "settings": "other settings",
    "seed": "another seed",
    "format": "another version of nni-robust",
}


class BatchProgress:
    """Results of one batch; made by :meth:`ProgressFolder.batch`."""

    def __init__(
        self, folder: ProgressFolder, x: Tensor, pictures: Tensor, y: Tensor, index: Tensor
    ) -> None:
        self._folder, self._x, self._index = folder, x, index
        self._pictures = [
            _digest(one, label) for one, label in zip(pictures.cpu(), y.tolist(), strict=True)
        ]
        self._found: dict[tuple[int, int], _Entry] = {}
        places = {int(i): n for n, i in enumerate(index.tolist())}
        for tensors in folder.read(places):
            self._take(tensors, places)

    def known(self, attack: int, rows: Tensor, *, pictures: bool = False) -> Known:
        """What an attack found on some pictures of the batch.

        Parameters
        ----------
        attack
            Its number.
        rows
            Places in the batch, int64.
        pictures
            Broken pictures are needed: one that was not kept counts as not tried.
        """
        adv = self._x[rows].clone()
        broken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        outside, tried, kept = (torch.zeros_like(broken) for _ in range(3))
        values: dict[int, list[float]] = {}
        for place, row in enumerate(rows.tolist()):
            entry = self._found.get((attack, row))
            if entry is None or (pictures and entry.broken and entry.adv is None):
                continue
            tried[place], broken[place], outside[place] = True, entry.broken, entry.outside
            values[place] = entry.values
            if entry.adv is not None:
                adv[place], kept[place] = entry.adv.to(adv), True
        numbers = torch.zeros(len(rows), max(map(len, values.values()), default=0))
        numbers = numbers.double()
        for place, found in values.items():
            numbers[place] = torch.tensor(found, dtype=torch.float64)
        return Known(adv, broken, outside, tried, kept, numbers)

    def completed(
        self,
        attack: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
        *,
        pictures: bool,
    ) -> Known:
        """What is known of the whole batch under one attack, once it has had what was missing.

        Parameters
        ----------
        attack
            From places in the batch to adversarial pictures, which of them are broken, and which
            are outside of ball or box; that is written down.
        pictures
            Broken pictures are needed, and kept.
        """
        known = self.known(0, torch.arange(len(self._x), device=self._x.device), pictures=pictures)
        rows = known.tried.logical_not().nonzero().flatten()
        if len(rows):
            adv, broken, outside = attack(rows)
            self.add(0, rows, adv, broken, kept=broken if pictures else None, outside=outside)
            known.adv[rows], known.broken[rows], known.outside[rows] = adv, broken, outside
        return known

    def add(
        self,
        attack: int | Tensor,
        rows: Tensor,
        adv: Tensor | None,
        broken: Tensor,
        *,
        kept: Tensor | None = None,
        outside: Tensor | None = None,
        values: Tensor | None = None,
    ) -> None:
        """Write what an attack found on some pictures of the batch.

        Parameters
        ----------
        attack
            Its number; or (len(rows),), int64: that of each row, as one file may hold several.
        adv
            Adversarial pictures; None keeps none.
        kept
            (len(rows),), bool: pictures to keep too; None is none.
        outside
            (len(rows),), bool: pictures outside ball or box; None is none.
        values
            (len(rows), K): numbers to write with them.
        """
        if len(rows) == 0:
            return
        index, rows = self._index[rows].cpu(), rows.cpu()
        kept = torch.zeros(len(rows), dtype=torch.bool) if kept is None else kept.cpu()
        outside = torch.zeros_like(broken) if outside is None else outside
        values = torch.zeros(len(rows), 0) if values is None else values
        pictures = self._x[:0] if adv is None else adv.detach().cpu()[kept]
        tensors = {
            "attack": torch.zeros_like(index) + torch.as_tensor(attack).cpu(),
            "index": index,
            "picture": torch.tensor([self._pictures[int(r)] for r in rows], dtype=torch.int64),
            "adversarial": pictures.cpu().contiguous(),
            "values": values.cpu().double(),
        }
        # Clones: one tensor must not lie in the file twice.
        for name, value in (("broken", broken), ("outside", outside), ("kept", kept)):
            tensors[name] = value.cpu().clone()
        self._folder.write(tensors)

    def _take(self, tensors: dict[str, Tensor], places: dict[int, int]) -> None:
        columns = ("attack", "index", "broken", "outside", "kept", "picture", "values")
        adversarial = iter(tensors["adversarial"])
        for attack, i, broken, outside, kept, digest, values in zip(
            *(tensors[name].tolist() for name in columns), strict=True
        ):
            adv = next(adversarial) if kept else None
            if (row := places.get(i)) is None:
                continue
            if digest != self._pictures[row]:
                raise UserError(
                    f"folder: '{self._folder.folder}' holds the results of other pictures; give "
                    "another folder"
                )
            before = self._found.get((attack, row))
            if before is None or before.adv is None:
                self._found[attack, row] = _Entry(broken, outside, adv, values)


def network_hash(model: nn.Module, settings: Sequence[str] = ()) -> str:
    """SHA-256 of the network's class, weights and statistics, and of settings."""
    total = hashlib.sha256("\n".join([type(model).__name__, *settings]).encode())
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):  # what a module adds by get_extra_state
            total.update(f"{name} {value!r}".encode())
            continue
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(_bytes(value))
    return total.hexdigest()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + _bytes(value))
    return total.hexdigest()


def _digest(x: Tensor, label: int) -> int:
    """A picture with its label, as 63 bits."""
    full = hashlib.sha256(f"{label} {tuple(x.shape)} {x.dtype}".encode() + _bytes(x)).digest()
    return int.from_bytes(full[:8], "big") >> 1


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().tobytes()
