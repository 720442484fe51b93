"""What rewards compare with: a task's trained teacher, or its architecture as a candidate."""

from __future__ import annotations

import logging

from nni_robust.config import as_mapping
from nni_robust.errors import UserError
from nni_robust.teacher import TeacherTraining

from ._phases import PhasedStrategy
from ._rl_rounds import Rounds
from ._rl_tasks import Target, is_trainable

__all__ = ["REFERENCES", "find_reference"]

_log = logging.getLogger(__name__)

REFERENCES = ("protocol", "teacher", "batch")


def find_reference(
    strategy: PhasedStrategy,
    rounds: Rounds,
    target: Target,
    *,
    reference: str | None,
    use_lips: bool,
    seed: int,
) -> None:
    """Train or load a task's teacher, and find what rewards compare with; both go into `target`.

    Parameters
    ----------
    strategy
        Whose trials these are.
    rounds
        Scores networks.
    target
        The task.
    reference, use_lips, seed
        See :class:`.rl_compressor.RLCompressor`.

    Raises
    ------
    UserError
        If the teacher is to be the reference and cannot be trained, or there is no store for it.
    """
    evaluator = strategy.model_space.evaluator
    kind = reference or ("protocol" if target.compresses else "batch")
    needs = bool(getattr(evaluator, "needs_teacher", False))
    learns = getattr(evaluator, "recipe", None) is not None
    if kind == "teacher" and not is_trainable(target.task):
        raise UserError(
            f"strategy.reference: 'teacher' is not allowed for task {target.name}, whose "
            "teacher has neither weights nor train"
        )
    if (needs or kind == "teacher" or (use_lips and learns)) and is_trainable(target.task):
        if evaluator.store is None:
            raise UserError(f"strategy {strategy.name} needs an evaluator with a store folder")
        training = TeacherTraining(
            task=as_mapping(target.task),
            store=evaluator.store,
            seed=getattr(evaluator, "seed", seed),
            score_limit=getattr(evaluator, "score_limit", None),
        )
        record = strategy.prepare(training, target.options.largest, f"the teacher of {target.name}")
        target.teacher_key = str(record["key"])
        target.lipschitz = record["lipschitz"] if use_lips else None
        if kind == "teacher":
            target.reference = rounds.score(target, target.options.teacher, record["metrics"])
    if kind == "protocol":
        sample = target.options.largest
        found = strategy.evaluate([sample], rounds.evaluator_for(target, "reference"))[0]
        if found is not None:
            target.reference = rounds.score(target, target.options.teacher, found)
        else:
            _log.warning(
                "the teacher of %s has no score; rewards compare with the first batch",
                target.name,
            )
