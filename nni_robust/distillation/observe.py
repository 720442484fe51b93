"""One evaluation of a loss, with the maps of the student and of its teachers beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from nni_robust.distillation.maps import MapSession
from nni_robust.training.losses import Forward, RobustLoss

__all__ = ["Observed", "observe"]


@dataclasses.dataclass(frozen=True)
class Observed:
    """What one evaluation of a loss showed.

    Parameters
    ----------
    loss, logits
        What the loss returned.
    clean_logits
        The student's logits (N, K) of the clean pictures; of the attacked ones where the loss does
        not look at the clean ones.
    clean_maps, attacked_maps
        The student's maps (n_s, B, d) of these pictures; both the same where the loss looks at one
        kind only.
    teacher_logits, teacher_maps
        Of the clean pictures, per teacher; without gradient.
    """

    loss: Tensor
    logits: Tensor
    clean_logits: Tensor
    clean_maps: Tensor
    attacked_maps: Tensor
    teacher_logits: list[Tensor]
    teacher_maps: list[Tensor]


def observe(
    loss: RobustLoss,
    forward: Forward,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    student: MapSession,
    teachers: Sequence[MapSession],
) -> Observed:
    """Compute a loss; hooks are on the networks only meanwhile.

    Each teacher computes the clean pictures once: where the loss itself asks it, its answer is
    used.

    Parameters
    ----------
    loss, forward, x, x_adv, y
        See :class:`nni_robust.training.losses.RobustLoss`.
    student
        Of the network behind `forward`.
    teachers
        One for each teacher; the networks are in evaluation mode.
    """
    maps: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watched(*batches: Tensor) -> tuple[Tensor, ...]:
        with student.recording():
            logits = forward(*batches)
        for number, batch in enumerate(batches):
            # By position: a wrapper for several devices may hand on copies.
            kind = "clean" if batch is x else "attacked"
            maps[kind], outputs[kind] = student.collect(number), logits[number]
        return logits

    with ExitStack() as stack:
        stack.enter_context(student)
        answers = [stack.enter_context(_Answers(session, x)) for session in teachers]
        value, logits = loss(watched, x, x_adv, y)
        for answer in answers:
            answer.complete()
    clean = "clean" if "clean" in maps else "attacked"
    attacked = "attacked" if "attacked" in maps else "clean"
    return Observed(
        value,
        logits,
        outputs[clean],
        maps[clean],
        maps[attacked],
        [answer.logits for answer in answers],
        [answer.maps for answer in answers],
    )


class _Answers:
    """A teacher's maps and logits of one batch, whoever asks for them."""

    logits: Tensor
    maps: Tensor

    def __init__(self, session: MapSession, x: Tensor) -> None:
        self.session, self.x, self.known = session, x, False
        self._handles: list[Any] = []

    def __enter__(self) -> _Answers:
        network = self.session.network
        self._handles = [
            network.register_forward_pre_hook(self._before),
            network.register_forward_hook(self._after),
        ]
        self.session.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.session.__exit__()
        for handle in self._handles:
            handle.remove()

    def complete(self) -> None:
        """Ask the teacher, unless the loss has done so."""
        if not self.known:
            with torch.no_grad():
                self.session.network(self.x)

    def _before(self, _: Any, inputs: tuple[Any, ...]) -> None:
        # The session's own hook comes after this one and begins a new record.
        self.session.enabled = bool(inputs) and inputs[0] is self.x and not self.known

    def _after(self, _: Any, __: Any, output: Tensor) -> None:
        if self.session.enabled:
            self.session.enabled, self.known = False, True
            self.logits, self.maps = output.detach(), self.session.collect().detach()
