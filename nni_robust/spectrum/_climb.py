"""One batch on its way through rising strengths, and what of it is known from before a kill.

For each picture and strength a folder holds whether it broke, its loss, and its share of the
passes. The attacked picture of one that withstood lies there until the next strength has gone on
from it, so that a kill costs one batch at one strength, and what is kept stays small.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust._pictures import Batch, in_half
from nni_robust._resuming import EvaluationFolder, attack_text
from nni_robust.attacks import NonFiniteOutput, Victim
from nni_robust.attacks._progress import BatchProgress, ProgressFolder
from nni_robust.reliability import Monitor, outside_ball
from nni_robust.spectrum._passes import Passes
from nni_robust.spectrum._rungs import Rung

__all__ = ["Climb", "judge", "open_folder"]


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, y: Tensor, largest_label: int = -1) -> tuple[Tensor, Tensor]:
    """Which pictures the network gets right ((N,), bool), and its cross entropies ((N,)).

    Raises
    ------
    NonFiniteOutput
        If a logit is not finite: comparing with NaN would look like a break.
    """
    logits = Victim(model, x.dtype, largest_label)(x)
    if not torch.isfinite(logits).all():
        raise NonFiniteOutput("the network's output is NaN or infinite")
    return logits.argmax(1) == y, F.cross_entropy(logits, y, reduction="none")


def open_folder(
    stack: ExitStack, folder: str | Path, model: nn.Module, rungs: list[Rung], seed: int
) -> tuple[EvaluationFolder, list[Rung], ProgressFolder | None]:
    """A folder that `stack` locks, the rungs to run there, and what is known of them.

    Attacks that keep what they find by themselves do so there, and nothing else is kept of them.

    Raises
    ------
    UserError
        As :class:`EvaluationFolder`; other strengths are other settings.
    """
    labels = ",".join(dict.fromkeys(rung.attack.label for rung in rungs))
    name = f"the {rungs[0].attack.threat.norm} spectrum of {labels}"
    text = "\n".join(f"{attack_text(rung.attack)} {rung.warm}" for rung in rungs)
    home = stack.enter_context(EvaluationFolder(folder, model, {name: text}, seed))
    place = home.place(name)
    own = [rung.attack.keeping_in(place / str(number)) for number, rung in enumerate(rungs)]
    made = [
        rung if attack is None else dataclasses.replace(rung, attack=attack)
        for rung, attack in zip(rungs, own, strict=True)
    ]
    return home, made, home.part(name) if own[0] is None else None


class Climb:
    """A batch at rising strengths; only pictures that withstood all before are attacked.

    Parameters
    ----------
    model
        The network.
    rungs
        All strengths.
    batch, good, loss
        The pictures; which are right without an attack; their losses then, raised in place.
    seed
        Of random starts.
    monitor
        Is shown what attacks find.
    passes
        Counter of the network's passes; those behind what is known are in `earlier`.
    folder
        What is known already, None for nothing.

    Attributes
    ----------
    left
        Rows that withstood so far.
    loss
        (N,): the highest loss so far.
    earlier
        Passes (with and without a gradient) of earlier calls behind what was known.
    """

    def __init__(
        self,
        model: nn.Module,
        rungs: list[Rung],
        batch: Batch,
        good: Tensor,
        loss: Tensor,
        *,
        seed: int,
        monitor: Monitor,
        passes: Passes,
        folder: ProgressFolder | None,
    ) -> None:
        self.model, self.rungs, self.batch, self.seed = model, rungs, batch, seed
        self.monitor, self.passes = monitor, passes
        self.left, self.loss = good.nonzero().flatten(), loss
        self.earlier = torch.zeros(2, dtype=torch.float64)
        self._from: tuple[Tensor, float] | None = None
        self._progress: BatchProgress | None = None
        self._written: _Written | None = None
        if folder is not None:
            index = torch.arange(len(good), device=good.device) + batch.first
            self._progress = folder.batch(batch.x, batch.x, batch.y, index)
            self._reach = self._known_strengths(self._progress)

    def up(self, number: int) -> None:
        """Attack the rows that are left at the next strength."""
        rung, rows = self.rungs[number], self.left
        if len(rows) == 0 or rung.eps == 0:
            return
        x, y = self.batch.x[rows], self.batch.y[rows]
        if self._progress is None:
            adv, found, correct = self._attacked(rung, rows, self._from)
            outside = None
        else:
            adv, found, correct, outside = self._resumed(self._progress, number)
        self.monitor.attacked(rung.attack, x, found, y, correct, outside)
        keep = correct.nonzero().flatten()
        self.left, self._from = rows[keep], (adv[keep], rung.eps)

    def _attacked(
        self, rung: Rung, rows: Tensor, start: tuple[Tensor, float] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attack some rows: pictures to go on from, what the attack found, and who is right."""
        x, y = self.batch.x[rows], self.batch.y[rows]
        found = rung.run(self.model, x, y, self.seed, rows + self.batch.first, start)
        correct, reached = judge(self.model, found, y)
        better = ~correct | (reached >= self.loss[rows])
        self.loss[rows] = torch.where(better, reached, self.loss[rows])
        if start is None:
            return found, found, correct
        # The weaker attack's picture is allowed here too.
        return torch.where(better.view(-1, 1, 1, 1), found, start[0]), found, correct

    def _resumed(
        self, progress: BatchProgress, number: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As :meth:`_attacked` for all rows that are left, and which pictures are outside."""
        rung, rows, start = self.rungs[number], self.left, self._from
        known = progress.known(number, rows)
        is_open = self._reach[rows] <= number
        taken, new = (~is_open).nonzero().flatten(), is_open.nonzero().flatten()
        adv, correct, outside = known.adv, ~known.broken, known.outside
        found = adv
        if len(taken):
            values = known.values[taken.cpu()]
            self.loss[rows[taken]] = values[:, 0].to(self.loss)
            self.earlier += values[:, 1:].sum(0)
        if len(new):
            found = adv.clone()
            went = self.passes.backward, self.passes.forward
            begin = None if start is None else (start[0][new], start[1])
            adv[new], found[new], correct[new] = self._attacked(rung, rows[new], begin)
            outside[new] = outside_ball(rung.attack, self.batch.x[rows[new]], found[new])
            spent = torch.tensor(
                [self.passes.backward - went[0], self.passes.forward - went[1]], dtype=torch.float64
            )
            values = torch.cat(
                [
                    self.loss[rows[new]].detach().cpu().double().unsqueeze(1),
                    (spent / len(new)).expand(len(new), 2),
                ],
                dim=1,
            )
            now = _Written(number, rows[new], adv[new], ~correct[new], outside[new], values)
            last, self._written = self._written, now
            now.write(progress, survivors=self._goes_on(number), broken=in_half(self.batch.x))
            if last is not None and self._goes_on(last.number):
                last.write(progress, survivors=False, broken=in_half(self.batch.x))
        return adv, found, correct, outside

    def _goes_on(self, number: int) -> bool:
        """Whether the strength after this one starts from its pictures."""
        return number + 1 < len(self.rungs) and self.rungs[number + 1].warm

    def _known_strengths(self, progress: BatchProgress) -> Tensor:
        """(N,): at how many strengths each picture is known; 0 where it has to start anew."""
        rows = torch.arange(len(self.batch.y), device=self.batch.y.device)
        reach = torch.zeros_like(rows)
        going, usable = reach == 0, reach == 0
        for number, rung in enumerate(self.rungs):
            if rung.eps == 0:
                reach[going] = number + 1
                continue
            known = progress.known(number, rows, pictures=in_half(self.batch.x))
            going = going & known.tried
            reach[going] = number + 1
            # What broke is done; others may need their picture to go on from.
            usable[going] = (known.broken | known.kept)[going] | (not self._goes_on(number))
            going = going & ~known.broken
        done = usable | (reach == len(self.rungs))
        return torch.where(done, reach, 0)


@dataclasses.dataclass(frozen=True)
class _Written:
    """What was found at a strength, to be written again without pictures once they are used."""

    number: int
    rows: Tensor
    adv: Tensor
    broken: Tensor
    outside: Tensor
    values: Tensor

    def write(self, progress: BatchProgress, *, survivors: bool, broken: bool) -> None:
        none = torch.zeros_like(self.broken)
        kept = (~self.broken if survivors else none) | (self.broken if broken else none)
        progress.add(
            self.number,
            self.rows,
            self.adv,
            self.broken,
            kept=kept,
            outside=self.outside,
            values=self.values,
        )
