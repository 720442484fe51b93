"""Cross-layer distillation: which layers of a robust teacher teach which layers of the student.

Paper: Nath, Wang, Yang, "RNAS-CL: Robust Neural Architecture Search by Cross-Layer Knowledge
Distillation", arXiv 2301.08092. Seed: SDL-ASU/RNAS-CL, commit f490b73.

1. The teacher is loaded or trained, and its robustness measured.
2. On the relaxed space one trial learns the network's weights, the logits of the architecture and
   those of the tutors: for each student layer, which teacher layer's attention map it imitates.
3. The architecture with the largest logits is trained from scratch, every layer with its tutor.

Differences, all on purpose: tutors get a gradient, which the released code's do not; the weights
and the logits learn from different pictures; nothing looks at the test split; architecture and
tutors are the largest logits, not noisy draws; the student may be trained adversarially, in the
search too. The fixed mappings and architectures that a search has to beat are settings
(`mapping`, `widths`), for the authors compare with none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_robust.config import as_mapping, parse
from nni_robust.cost import Cost, measure_cost
from nni_robust.data import load_task
from nni_robust.distillation import MAPPINGS, CrossLayerTerm, SearchSettings
from nni_robust.errors import UserError, nearest
from nni_robust.relaxation import relax
from nni_robust.sampling import Sample, draw, draw_distinct
from nni_robust.store import append_record, write_json
from nni_robust.teacher import Teacher, TeacherTraining, teacher_from_store

from ._cross_layer_export import tutor_map
from ._cross_layer_search import CrossLayerSearch
from ._phases import PhasedStrategy, blank_space

__all__ = ["CrossLayerDistillation"]

WIDTHS = ("searched", "min", "max", "random")


class CrossLayerDistillation(PhasedStrategy):
    """Search an architecture together with the tutors of its layers, then train it with them.

    Works on any NNI space that :func:`nni_robust.relaxation.relax` takes; on others it learns
    tutors for a fixed network (`widths` other than ``searched``). The evaluator needs ``task``,
    ``store``, ``teacher``, ``tutors`` and ``variant(teacher=key, tutors=settings)``, as
    `AdversarialTraining` has.

    Parameters
    ----------
    search
        Settings of the search, see :class:`nni_robust.distillation.SearchSettings`.
    tutors
        Settings of the term in the student's training, see
        :class:`nni_robust.distillation.CrossLayerTerm`; ``maps``, ``taps`` and ``teacher_taps`` are
        those of the search where not given.
    mapping
        ``searched``, or a fixed rule: ``random``, ``proportional``, ``same-stage``, ``average``,
        ``last``, ``none`` (:func:`nni_robust.distillation.fixed_mapping`). It replaces the tutors
        after the search, so that mappings are compared on equal architectures.
    widths
        ``searched``; ``min``, ``max``: the smallest or largest value of every choice; ``random``:
        of `draws` random architectures the one nearest in MACs to the searched one.
    teachers
        Settings of several :class:`nni_robust.teacher.Teacher`, which teach together: a student
        layer chooses among the layers of all. None is the task's teacher.
    rivals
        Further `widths` that are trained and scored in the same way.
    draws
        See `widths`.
    seed
        Of everything random.

    Raises
    ------
    UserError
        If a setting is impossible.
    """

    name = "cross-layer-distillation"
    needs = ("task", "store", "teacher", "tutors", "variant")

    def __init__(
        self,
        *,
        search: Mapping[str, Any] | None = None,
        tutors: Mapping[str, Any] | None = None,
        mapping: str = "searched",
        widths: str = "searched",
        teachers: Sequence[Mapping[str, Any]] | None = None,
        rivals: Sequence[str] = (),
        draws: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.search = parse(SearchSettings, search, "strategy.search")
        self.mapping = _one_of("mapping", mapping, MAPPINGS)
        self.widths = [_one_of("widths", value, WIDTHS) for value in (widths, *rivals)]
        if len(set(self.widths)) < len(self.widths):
            raise UserError(f"strategy.rivals: {list(rivals)} names an architecture twice")
        if draws < 1:
            raise UserError(f"strategy.draws: {draws} is not allowed; at least 1 is")
        self.draws, self.seed = draws, seed
        self.teachers = [parse(Teacher, t, "strategy.teachers") for t in teachers or ()]
        self.term = {
            "taps": self.search.taps,
            "teacher_taps": self.search.teacher_taps,
            "maps": as_mapping(self.search.maps),
            "seed": seed,
            **(tutors or {}),
        }
        for key in ("mapping", "pairs", "teacher", "more_teachers"):
            if key in (tutors or {}):
                raise UserError(f"strategy.tutors.{key}: it follows from the strategy's settings")
        try:
            CrossLayerTerm(**self.term)
        except TypeError as e:
            raise UserError(f"strategy.tutors: {e}") from None
        self.fixed = False
        self.keys: list[str] = []
        self.found: dict[str, Any] | None = None
        self.settled: dict[str, Any] = {}
        self.samples: list[Sample] = []

    @property
    def candidates(self) -> int:
        """Networks that are trained and scored."""
        return len(self.widths)

    @property
    def trials(self) -> int:
        """Most models that are submitted: teachers, a search, candidates."""
        return max(1, len(self.teachers)) + int(self._searches()) + self.candidates

    @property
    def adds_to_loss(self) -> bool:
        """Whether tutors add a term to the loss of candidates and final networks."""
        return self.mapping != "none"

    def extra_repr(self) -> str:
        return f"mapping={self.mapping}, widths={self.widths[0]}, seed={self.seed}"

    def _searches(self) -> bool:
        return self.mapping == "searched" or bool({"searched", "random"} & set(self.widths))

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        super()._initialize(model_space, engine)
        task = model_space.evaluator.task
        if not self.teachers:
            if task.teacher is None:
                raise UserError(
                    "strategy cross-layer-distillation needs a teacher; set task.teacher"
                )
            self.teachers = [task.teacher]
        self.mutables = model_space.simplify()
        self.space = blank_space(model_space)
        with torch.device("meta"):
            try:
                relax(self.space)
            except UserError as e:
                if self.mutables and {"searched"} & set(self.widths):
                    raise UserError(
                        f"{e}; with strategy.widths random, min or max tutors are learned for a "
                        "network that is not searched"
                    ) from None
                self.fixed = True
        for rule in {"min", "max"} & set(self.widths):
            self._extreme(rule)
        return model_space

    def _run(self) -> None:
        evaluator = self.model_space.evaluator
        any_sample = draw(self.mutables, np.random.RandomState(self.seed))
        self.keys = [self._teach(teacher, any_sample) for teacher in self.teachers]
        if self._searches() and not self.fixed:
            self.found = self._search(any_sample)
        self.samples = [self._architecture(rule) for rule in self.widths]
        if self.mapping == "searched" and self.fixed:
            self.found = self._search(self.samples[0])
        self.settled = self._settled(evaluator.task)
        learned = dict(self.settled)
        if getattr(evaluator, "recipe", None) is None:  # it only attacks, so nobody learns
            learned["tutors"] = None
        found = self.evaluate(self.samples, evaluator.variant(**learned))
        if all(metrics is None for metrics in found):
            raise UserError(
                "zero candidates left: all failed; the reasons are in "
                f"{evaluator.store}/*/error.json"
            )

    def _teach(self, teacher: Teacher, sample: Sample) -> str:
        evaluator = self.model_space.evaluator
        training = TeacherTraining(
            task=as_mapping(dataclasses.replace(evaluator.task, teacher=teacher)),
            store=evaluator.store,
            seed=teacher.seed,
            attacks=getattr(evaluator, "attacks", None) or None,  # none: the task's
            score_limit=getattr(evaluator, "score_limit", None),
        )
        return str(self.prepare(training, sample, "the teacher's training")["key"])

    def _search(self, sample: Sample) -> dict[str, Any]:
        evaluator = self.model_space.evaluator
        trial = CrossLayerSearch(
            task=as_mapping(evaluator.task),
            teachers=[
                {"key": key, "teacher": as_mapping(teacher)}
                for key, teacher in zip(self.keys, self.teachers, strict=True)
            ],
            settings=as_mapping(self.search),
            store=evaluator.store,
            seed=self.seed,
            fixed=self.fixed,
        )
        return self.prepare(trial, sample, "the search for tutors")

    def _settled(self, task: Any) -> dict[str, Any]:
        """What the students' evaluators get."""
        first = dataclasses.replace(task, teacher=self.teachers[0])
        return {
            "task": as_mapping(first),
            "teacher": self.keys[0],
            "tutors": None if self.mapping == "none" else self._tutors(),
        }

    def _tutors(self) -> dict[str, Any]:
        """Settings of the term that trains the students."""
        store = str(self.model_space.evaluator.store)
        settings = {**self.term, "mapping": self.mapping}
        if self.mapping == "searched":
            assert self.found is not None
            settings["pairs"] = [
                [tutor["student"], tutor["tutor"], tutor["teacher"]]
                for tutor in self.found["search"]["tutors"]
            ]
        if len(self.keys) > 1:
            settings["more_teachers"] = [
                as_mapping(
                    dataclasses.replace(
                        teacher, weights=str(Path(store, key, "weights.safetensors").absolute())
                    )
                )
                for key, teacher in list(zip(self.keys, self.teachers, strict=True))[1:]
            ]
        return settings

    def _architecture(self, rule: str) -> Sample:
        if not self.mutables:
            return {}
        if rule in ("min", "max"):
            return self._extreme(rule)
        searched = None if self.found is None else dict(self.found["search"]["sample"])
        if rule == "searched":
            assert searched is not None
            return searched
        rng = np.random.RandomState(self.seed + 1)
        if searched is None:
            return draw_distinct(1, self.mutables, rng)[0]
        # Small spaces may hold fewer others than there are draws.
        drawn = [draw(self.mutables, rng) for _ in range(self.draws)]
        others = [sample for sample in drawn if sample != searched] or [searched]
        aim = self._cost(searched).macs
        return min(others, key=lambda sample: abs(self._cost(sample).macs - aim))

    def _extreme(self, rule: str) -> Sample:
        """Smallest or largest value of every choice."""
        sample: Sample = {}
        for label, mutable in self.mutables.items():
            values = list(getattr(mutable, "values", ()))
            if not values or not all(isinstance(value, (int, float)) for value in values):
                raise UserError(
                    f"strategy.widths: {rule} is not allowed for this space; its choice '{label}' "
                    "is not one of numbers"
                )
            sample[label] = min(values) if rule == "min" else max(values)
        return sample

    def _cost(self, sample: Sample) -> Cost:
        shape = load_task(self.model_space.evaluator.task).input_shape
        if hasattr(self.space, "cost"):
            cost: Cost = self.space.cost(sample, shape)
            return cost
        with torch.device("meta"):
            return measure_cost(self.space.freeze(sample), shape)

    def final_settings(self) -> dict[str, Any]:
        """What the final networks are trained with besides their recipe: teacher and tutors."""
        return self.settled

    def export(self, run: Path) -> None:
        """Write ``tutors.json`` (who teaches whom) and ``search_history.jsonl`` into the run."""
        if self.found is not None:
            history = run / "search_history.jsonl"
            history.unlink(missing_ok=True)
            for record in self.found["history"]:
                append_record(history, record)
        if not self.settled:
            return
        task = self.model_space.evaluator.task
        searched = None if self.found is None else self.found["search"]
        value = {
            "mapping": self.mapping,
            "widths": self.widths[0],
            "sample": self.samples[0],
            "teachers": [teacher.architecture for teacher in self.teachers],
        }
        if self.mapping == "searched":
            assert searched is not None
            value |= {key: searched[key] for key in ("students", "layers", "tutors", "matrix")}
        elif self.mapping != "none":
            network = self.model_space.freeze(self.samples[0]).executable_model()
            data, store = load_task(task), str(self.model_space.evaluator.store)
            value |= tutor_map(
                CrossLayerTerm(**self.settled["tutors"]),
                network,
                [
                    teacher_from_store(store, key, teacher, data.num_classes, data.input_shape)
                    for key, teacher in zip(self.keys, self.teachers, strict=True)
                ],
                data.input_shape,
            )
        if searched is not None:
            value["probabilities"] = searched["probabilities"]
        write_json(run / "tutors.json", value)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every phase and candidate is answered from the store when it is asked again."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""


def _one_of(key: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UserError(
            f"strategy.{key}: {value!r} is not allowed{nearest(str(value), allowed)} "
            f"(allowed: {', '.join(allowed)})"
        )
    return value
