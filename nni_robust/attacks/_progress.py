"""What attacks in a row have found so far, in a folder, so that a crash costs one batch.

One safetensors file for each attack and batch, written in one step. A picture is known by its
index; a hash of network, settings and seed, and one of each picture with its label, keep results of
something else out.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nni_robust._files import atomic_path, set_aside
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.errors import DamageWarning, UserError

__all__ = ["AttackProgress", "network_hash"]

_PATTERN = "attack-*.safetensors"


class AttackProgress:
    """Results of one batch, those from before and those to come.

    Parameters
    ----------
    folder
        Where; made if it is missing.
    settings
        What was run, as text.
    model
        The network.
    ball, y, noise
        The batch.

    Raises
    ------
    UserError
        If there is no seed, or the folder holds results of another network, other settings or other
        pictures.
    """

    def __init__(
        self,
        folder: Path,
        settings: Sequence[str],
        model: nn.Module,
        ball: Ball,
        y: Tensor,
        noise: Noise,
    ) -> None:
        if noise.seed is None:
            raise UserError("folder: an attack can be resumed only with a seed")
        self._folder, self._x, self._index = folder, ball.x, noise.index
        self._run = network_hash(model, [*settings, f"seed {noise.seed}"])
        self._pictures = [
            _digest(x, label) for x, label in zip(ball.pictures, y.tolist(), strict=True)
        ]
        self._found: dict[tuple[int, int], tuple[bool, Tensor | None]] = {}
        places = {int(i): n for n, i in enumerate(noise.index)}
        for path in sorted(folder.glob(_PATTERN)):
            self._read(path, places)

    def known(self, attack: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (clean where nothing was found), which are broken, and which were tried."""
        adv = self._x[rows].clone()
        broken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        tried = torch.zeros_like(broken)
        for place, row in enumerate(rows.tolist()):
            if (entry := self._found.get((attack, row))) is not None:
                tried[place], broken[place] = True, entry[0]
                if entry[1] is not None:
                    adv[place] = entry[1].to(adv)
        return adv, broken, tried

    def add(self, attack: int, rows: Tensor, adv: Tensor, broken: Tensor) -> None:
        """Write what an attack found on some pictures of the batch."""
        index, rows = self._index[rows].cpu(), rows.cpu()
        # The first attack's pictures also stand for those that resist.
        kept = broken if attack else torch.ones_like(broken)
        tensors = {
            "attack": torch.tensor(attack),
            "index": index,
            "broken": broken.cpu(),
            "picture": torch.tensor([self._pictures[int(r)] for r in rows], dtype=torch.int64),
            "kept": kept.cpu().clone(),  # one tensor must not lie in the file twice
            "adversarial": adv[kept].detach().cpu().contiguous(),
        }
        name = hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._folder / f"attack-{attack}-{name}.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"run": self._run})

    def _read(self, path: Path, places: dict[int, int]) -> None:
        try:
            with safe_open(path, framework="pt") as f:
                run = (f.metadata() or {}).get("run")
                if run != self._run:
                    raise UserError(
                        f"folder: {path.parent} holds the results of another network, seed or "
                        "setting; give another folder"
                    )
                if places.keys().isdisjoint(f.get_tensor("index").tolist()):
                    return
                tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            aside = set_aside(path)
            warnings.warn(
                f"'{path}' is damaged ({e}): kept as {aside.name}; its pictures are attacked again",
                DamageWarning,
                stacklevel=2,
            )
            return
        attack, index = int(tensors["attack"]), tensors["index"].tolist()
        broken, kept, pictures = (tensors[k].tolist() for k in ("broken", "kept", "picture"))
        adversarial = iter(tensors["adversarial"])
        for i, is_broken, has_picture, digest in zip(index, broken, kept, pictures, strict=True):
            adv = next(adversarial) if has_picture else None
            if (row := places.get(i)) is None:
                continue
            if digest != self._pictures[row]:
                raise UserError(
                    f"folder: {path.parent} holds the results of other pictures; give another "
                    "folder"
                )
            self._found[attack, row] = (is_broken, adv)


def network_hash(model: nn.Module, settings: Sequence[str] = ()) -> str:
    """SHA-256 of the network's class, weights and statistics, and of settings."""
    total = hashlib.sha256("\n".join([type(model).__name__, *settings]).encode())
    for name, value in model.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(_bytes(value))
    return total.hexdigest()


def _digest(x: Tensor, label: int) -> int:
    """A picture with its label, as 63 bits."""
    full = hashlib.sha256(f"{label} {tuple(x.shape)} {x.dtype}".encode() + _bytes(x)).digest()
    return int.from_bytes(full[:8], "big") >> 1


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().tobytes()
