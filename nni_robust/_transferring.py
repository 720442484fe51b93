"""Examples of one source shown to targets, and what of that is known from before a kill."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from nni_robust._pictures import Batch, in_half, is_correct, placement
from nni_robust._resuming import EvaluationFolder, attack_text, place_name
from nni_robust.attacks import Attack
from nni_robust.attacks._progress import ProgressFolder, network_hash
from nni_robust.reliability import Monitor, outside_ball

__all__ = ["Source", "correct", "placed"]


def placed(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures and labels where a network is, in its type."""
    place, dtype = placement(network, None)
    return x.to(place, dtype or x.dtype), y.to(place)


def correct(network: nn.Module, x: Tensor, y: Tensor, largest_label: int) -> Tensor:
    """(N,), bool, where `y` is: pictures for which the network gives their labels."""
    return is_correct(network, *placed(network, x, y), largest_label).to(y.device)


class Source:
    """A network that examples are crafted on.

    Parameters
    ----------
    name, network
        The source.
    targets
        Networks that its examples are shown to, by name.
    attack, seed
        How they are crafted.
    monitor
        Of the source.
    folder
        Of all sources; this one has its own below it. None keeps nothing.
    stack
        Locks that folder.

    Raises
    ------
    UserError
        As :class:`EvaluationFolder`; another target of the same name is another setting.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        targets: Mapping[str, nn.Module],
        attack: Attack,
        *,
        seed: int,
        monitor: Monitor,
        folder: str | Path | None,
        stack: ExitStack,
    ) -> None:
        self.network, self.targets, self.attack = network, targets, attack
        self.seed, self.monitor = seed, monitor
        self._own: ProgressFolder | None = None
        self._shown: dict[str, ProgressFolder] = {}
        if folder is None:
            return
        parts = {attack.key: attack_text(attack)}
        for target, other in targets.items():
            parts[f"{attack.key} on {target}"] = f"{parts[attack.key]} {network_hash(other)}"
        place = Path(folder) / place_name(name)
        home = stack.enter_context(EvaluationFolder(place, network, parts, seed, attack.threat))
        self._own = home.part(attack.key)
        self._shown = {target: home.part(f"{attack.key} on {target}") for target in targets}

    def still_right(self, batch: Batch, rows: Tensor) -> dict[str, Tensor]:
        """For each target (len(rows),), bool: whether it is right about the rows' examples."""
        x, y, index = batch.x[rows], batch.y[rows], rows + batch.first
        if len(rows) == 0:
            return dict.fromkeys(self.targets, torch.zeros_like(y, dtype=torch.bool))
        clean, labels = placed(self.network, x, y)
        everything = torch.arange(len(y), device=labels.device)
        if self._own is None:
            adv, own, outside = self._crafted(clean, labels, index)
            self.monitor.attacked(self.attack, clean, adv, labels, own, outside)
            return {target: self._answers(target, adv, batch, y) for target in self.targets}
        own_known = self._own.batch(clean, x, y, index)
        shown_known = {t: part.batch(x[:, :0], x, y, index) for t, part in self._shown.items()}
        known = own_known.known(0, everything, pictures=in_half(clean))
        answers = {t: one.known(0, everything.to(y.device)) for t, one in shown_known.items()}
        tried = known.tried.to(y.device)
        for one in answers.values():
            tried = tried & one.tried
        still = {target: ~one.broken for target, one in answers.items()}
        adv, own, outside = known.adv, ~known.broken, known.outside
        new = (~tried).nonzero().flatten()
        if len(new):
            there = new.to(labels.device)
            found = self._crafted(clean[there], labels[there], index[new])
            adv[there], own[there], outside[there] = found
            for target, progress in shown_known.items():
                still[target][new] = self._answers(target, adv[there], batch, y[new])
                progress.add(0, new, None, ~still[target][new])
            kept = ~own[there] & in_half(clean)
            own_known.add(0, new, adv[there], ~own[there], kept=kept, outside=outside[there])
        self.monitor.attacked(self.attack, clean, adv, labels, own, outside)
        return still

    def _crafted(self, x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Examples, whether the source is right about them, and which are outside."""
        adv = self.attack(self.network, x, y, seed=self.seed, index=index.to(y.device))
        return adv, is_correct(self.network, adv, y), outside_ball(self.attack, x, adv)

    def _answers(self, target: str, adv: Tensor, batch: Batch, y: Tensor) -> Tensor:
        return correct(self.targets[target], adv, y, batch.largest_label)
