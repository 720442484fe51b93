"""The cross-layer term of a training: student layers imitate the maps of their tutors.

It goes with any loss of :mod:`nni_robust.training.losses`. Attacks do not see it: maps are recorded
only while the loss itself is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_robust.config import as_mapping, parse
from nni_robust.distillation.mappings import MAPPINGS, fixed_mapping, relocate
from nni_robust.distillation.maps import MapConfig, MapSession, distances, tap_sides
from nni_robust.distillation.observe import Observed, observe
from nni_robust.distillation.taps import TapPoint, TapSpec, find_taps
from nni_robust.errors import UserError, nearest
from nni_robust.teacher import Teacher
from nni_robust.training.losses import Forward, RobustLoss

__all__ = ["CrossLayerTerm", "ResolvedTutors"]


@dataclasses.dataclass(frozen=True)
class ResolvedTutors:
    """Tutors of two or more given networks.

    Parameters
    ----------
    students
        The student's layers that learn.
    teachers
        For each teacher its layers that teach.
    weights
        (layers of the student, layers of all teachers); all entries add up to 1, or there are none.
    """

    students: list[TapPoint]
    teachers: list[list[TapPoint]]
    weights: Tensor


class CrossLayerTerm:
    """Adds ``gamma`` times the distance between student maps and their tutors' to a loss.

    RNAS-CL's training loss (Nath, Wang, Yang, 2301.08092) is that on top of cross entropy and
    the divergence from the teacher's output, which a recipe's ``distillation`` gives. The term is
    the mean over student layers; the printed one is n_t times smaller for the same gamma.

    Parameters
    ----------
    mapping
        A rule of :data:`nni_robust.distillation.MAPPINGS`, or ``searched`` with `pairs`.
    pairs
        Of ``searched``: names of a student layer and of its tutor, and the number of the teacher
        (0 where left out). A student layer that the network has not is replaced by the one at the
        same share of the depth.
    gamma
        Weight of the term.
    taps, teacher_taps
        Layers, see :func:`nni_robust.distillation.find_taps`.
    maps
        Settings of a :class:`nni_robust.distillation.MapConfig`.
    pictures
        Whose maps the student shows: ``"clean"``, those of the unattacked pictures, where the loss
        looks at them (else of the attacked ones); ``"attacked"``. The teachers' maps are always
        those of the unattacked pictures.
    seed
        Of the mapping ``random``.
    teacher
        The teacher, where it is not given with the loss.
    more_teachers
        Settings of further :class:`nni_robust.teacher.Teacher` with weights.

    Raises
    ------
    UserError
        If a setting is impossible.
    """

    def __init__(
        self,
        *,
        mapping: str = "proportional",
        pairs: Sequence[Sequence[Any]] | None = None,
        gamma: float = 30.0,
        taps: TapSpec = "auto",
        teacher_taps: TapSpec = "auto",
        maps: Mapping[str, Any] | None = None,
        pictures: Literal["clean", "attacked"] = "clean",
        seed: int = 0,
        teacher: nn.Module | None = None,
        more_teachers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if mapping not in MAPPINGS:
            raise UserError(
                f"tutors.mapping: {mapping!r} is not allowed{nearest(str(mapping), MAPPINGS)} "
                f"(allowed: {', '.join(MAPPINGS)})"
            )
        if (mapping == "searched") != (pairs is not None):
            raise UserError("tutors.pairs: mapping 'searched' needs pairs, and no other has any")
        if not gamma >= 0:
            raise UserError(f"tutors.gamma: {gamma!r} is not allowed; a number >= 0 is")
        if pictures not in ("clean", "attacked"):
            raise UserError(
                f"tutors.pictures: {pictures!r} is not allowed; allowed: clean, attacked"
            )
        self.mapping, self.gamma, self.pictures, self.seed = mapping, gamma, pictures, seed
        self.pairs = None if pairs is None else [_pair(pair) for pair in pairs]
        self.taps, self.teacher_taps = taps, teacher_taps
        self.maps = parse(MapConfig, maps, "tutors.maps")
        self.teacher = teacher
        self.more_teachers = [parse(Teacher, t, "tutors.more_teachers") for t in more_teachers]

    def settings(self) -> dict[str, Any]:
        """What the training depends on, JSON-able; the teacher itself is left to the caller."""
        return {
            "mapping": self.mapping,
            "pairs": None if self.pairs is None else [list(pair) for pair in self.pairs],
            "gamma": self.gamma,
            "taps": self.taps if isinstance(self.taps, str) else list(self.taps),
            "teacher_taps": self.teacher_taps
            if isinstance(self.teacher_taps, str)
            else list(self.teacher_taps),
            "maps": as_mapping(self.maps),
            "pictures": self.pictures,
            "seed": self.seed,
            "more_teachers": [as_mapping(teacher) for teacher in self.more_teachers],
        }

    def __call__(
        self, loss: RobustLoss, model: nn.Module, teacher: nn.Module | None = None
    ) -> RobustLoss:
        """The loss with the term.

        Parameters
        ----------
        loss
            Any loss. If it has an attribute ``teacher``, that is the teacher.
        model
            The student.
        teacher
            The teacher, where neither the loss nor the constructor has it.

        Raises
        ------
        UserError
            If there is no teacher.
        """
        if self.mapping == "none" or self.gamma == 0:
            return loss
        first = teacher or self.teacher or getattr(loss, "teacher", None)
        if first is None:
            raise UserError("tutors: a teacher is needed; set task.teacher")
        return _WithTutors(loss, model, first, self)

    def resolve(
        self, student: nn.Module, teachers: Sequence[nn.Module], input_shape: Sequence[int]
    ) -> ResolvedTutors:
        """Which layers teach which, for given networks and pictures (C, H, W).

        Raises
        ------
        UserError
            If a layer does not exist.
        """
        own = find_taps(student, self.taps)
        theirs = [find_taps(teacher, self.teacher_taps) for teacher in teachers]
        every = [(number, point) for number, points in enumerate(theirs) for point in points]
        if self.pairs is not None:
            places = {(number, point.name): k for k, (number, point) in enumerate(every)}
            found = relocate([point.name for point in own], [pair[0] for pair in self.pairs])
            pairs = []
            for i, (_, name, number) in zip(found, self.pairs, strict=True):
                if (number, name) not in places:
                    raise UserError(f"tutors.pairs: teacher {number} has no layer '{name}'")
                pairs.append((i, places[number, name]))
        else:
            heights = [
                side
                for teacher, points in zip(teachers, theirs, strict=True)
                for side in tap_sides(teacher, points, input_shape)
            ]
            pairs = fixed_mapping(
                self.mapping, tap_sides(student, own, input_shape), heights, self.seed
            )
        rows, columns = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
        weights = torch.zeros(len(rows), len(columns))
        for i, j in pairs:
            weights[rows.index(i), columns.index(j)] += 1
        if pairs:
            weights /= weights.sum(1, keepdim=True) * len(rows)
        return ResolvedTutors(
            [own[i] for i in rows],
            [
                [every[j][1] for j in columns if every[j][0] == number]
                for number in range(len(teachers))
            ],
            weights,
        )


class _WithTutors:
    """A loss plus the cross-layer term."""

    def __init__(
        self, loss: RobustLoss, model: nn.Module, teacher: nn.Module, term: CrossLayerTerm
    ) -> None:
        self.loss, self.model, self.term = loss, model, term
        self.teachers: list[nn.Module] = [teacher]
        self.tutors: ResolvedTutors | None = None

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return self.loss.perturb(model, x, y, seed)

    def replay(self, x: Tensor, x_adv: Tensor, done: int) -> Tensor | None:
        return self.loss.replay(x, x_adv, done)

    def __call__(
        self, forward: Forward, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        tutors = self.tutors or self._resolve(x)
        seen = observe(self.loss, forward, x, x_adv, y, *self._sessions(tutors))
        return seen.loss + self.term.gamma * self._distance(seen, tutors), seen.logits

    def _sessions(self, tutors: ResolvedTutors) -> tuple[MapSession, list[MapSession]]:
        maps = self.term.maps
        return MapSession(self.model, tutors.students, maps), [
            MapSession(teacher, points, maps)
            for teacher, points in zip(self.teachers, tutors.teachers, strict=True)
        ]

    def _distance(self, seen: Observed, tutors: ResolvedTutors) -> Tensor:
        attacked = self.term.pictures == "attacked"
        own = seen.attacked_maps if attacked else seen.clean_maps
        distance = distances(own, torch.cat(seen.teacher_maps))
        return (tutors.weights.to(distance.device) * distance).sum()

    def _resolve(self, x: Tensor) -> ResolvedTutors:
        shape = tuple(x.shape[1:])
        if self.term.more_teachers:
            from nni_robust.teacher import load_teacher  # imports trainings, and they losses

            with torch.no_grad():
                classes = self.teachers[0].eval()(x[:1]).shape[1]
            self.teachers += [load_teacher(t, classes, shape) for t in self.term.more_teachers]
        self.teachers = [teacher.to(x.device) for teacher in self.teachers]
        self.tutors = self.term.resolve(self.model, self.teachers, shape)
        return self.tutors


def _pair(pair: Sequence[Any]) -> tuple[str, str, int]:
    student, tutor, *number = pair
    return str(student), str(tutor), int(number[0]) if number else 0
