"""Every break of an evaluation verified in float32, and the first of them kept as examples."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_robust.adversarial import AdversarialExamples, float32_network, outside, predictions
from nni_robust.attacks import Attack
from nni_robust.attacks._progress import network_hash
from nni_robust.errors import UserError

__all__ = ["Keep", "Keeper"]

#: Examples to keep of each attack.
Keep = int | Literal["all"]


@dataclasses.dataclass
class _Found:
    """What one attack found so far: rows of each tensor, and counts."""

    parts: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)
    kept: int = 0
    broken: int = 0
    refuted: int = 0


class Keeper:
    """Verifies and keeps what attacks find; call its methods inside :func:`undisturbed`.

    Parameters
    ----------
    model
        The network.
    keep
        Examples to keep of each attack, or ``"all"``.
    seed
        Of the evaluation.
    classes
        Names of the classes.

    Raises
    ------
    UserError
        If `keep` is no number above 0 and not ``"all"``.
    """

    def __init__(self, model: nn.Module, keep: Keep, *, seed: int, classes: Any = ()) -> None:
        if keep != "all" and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
            raise UserError(f"keep: {keep!r} is not allowed; a whole number >= 1 or 'all' is")
        self.most = None if keep == "all" else keep
        self.model, self.seed, self.classes = model, seed, tuple(map(str, classes))
        self._network: nn.Module | None = None
        self._hash: str | None = None
        self._found: dict[str, _Found] = {}
        self._shape: tuple[int, ...] = (0, 0, 0)

    def attacked(
        self, attack: Attack, x: Tensor, adv: Tensor, y: Tensor, index: Tensor, correct: Tensor
    ) -> Tensor:
        """Which pictures are still right, once each break has been verified.

        Parameters
        ----------
        attack
            What attacked.
        x, adv
            (N, C, H, W): right pictures before and after.
        y, index
            (N,), int64: labels and places in the data.
        correct
            (N,), bool: what the network says, in its own precision.
        """
        found = self._found.setdefault(attack.key, _Found())
        self._shape = tuple(x.shape[1:])
        rows = correct.logical_not().nonzero().flatten()
        if len(rows) == 0:
            return correct
        if self._network is None:
            self._network = float32_network(self.model)
        # What is written down is float32, so that is what is checked.
        clean, after, labels = x[rows].float(), adv[rows].detach().float(), y[rows]
        legal = outside(clean, after, attack.threat).logical_not()
        answers = predictions(self._network, after.nan_to_num(), len(rows))
        holds = legal & (answers != labels)
        found.broken += int(holds.sum())
        found.refuted += len(rows) - int(holds.sum())
        left = None if self.most is None else self.most - found.kept
        if holds.any() and left != 0:
            before = predictions(self._network, clean, len(rows))
            kept = (holds & (before == labels)).nonzero().flatten()[:left]
            found.kept += len(kept)
            values = {
                "clean": clean[kept],
                "adversarial": after[kept],
                "labels": labels[kept],
                "predicted_clean": before[kept],
                "predicted_adversarial": answers[kept],
                "index": index[rows[kept]],
            }
            found.parts.append({key: value.cpu() for key, value in values.items()})
        corrected = correct.clone()
        corrected[rows[~holds]] = True
        return corrected

    def examples(self, attack: Attack, pictures: int) -> AdversarialExamples:
        """What was kept of one attack, after the last of so many pictures."""
        found = self._found.get(attack.key, _Found())
        self._hash = self._hash or network_hash(self.model)
        empty = torch.zeros(0, dtype=torch.int64)
        none = {"clean": torch.zeros(0, *self._shape), "labels": empty}
        none |= {"adversarial": none["clean"], "index": empty}
        none |= {"predicted_clean": empty, "predicted_adversarial": empty}
        parts = found.parts or [none]
        return AdversarialExamples(
            **{key: torch.cat([part[key] for part in parts]) for key in none},
            attack=attack.key,
            threat=attack.threat,
            classes=self.classes,
            seed=self.seed,
            pictures=pictures,
            broken=found.broken,
            refuted=found.refuted,
            network=type(self.model).__name__,
            fingerprint=self._hash,
        )
