"""Settings of an evaluator that do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nni_robust.config import parse
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training._recipe_parts import number

if TYPE_CHECKING:
    from .adversarial_training import AdversarialTraining

__all__ = ["check_combinations", "tutoring"]


def check_combinations(evaluator: AdversarialTraining) -> None:
    """Refuse settings that contradict each other.

    Raises
    ------
    UserError
        If any do, or the tutors' are wrong.
    """
    e = evaluator
    if e.score_limit is not None:
        number("evaluator.score_limit", e.score_limit, 1, whole=True)
    number("evaluator.recalibrate_batches", e.recalibrate_batches, 0, whole=True)
    if e.inherit not in (None, "teacher"):
        raise UserError(
            f"evaluator.inherit: {e.inherit!r} is not allowed; allowed: teacher (or nothing)"
        )
    if e.inherit is not None and e.supernet is not None:
        raise UserError("evaluator.inherit: 'teacher' is not allowed with a supernet's weights")
    if e.inherit_options and e.inherit is None:
        raise UserError("evaluator.inherit_options is not allowed without inherit: teacher")
    if e.tutors is not None and e.recipe is None:
        raise UserError("evaluator.tutors is not allowed without training (train is null)")
    if e.needs_teacher and e.task.teacher is None:
        what = "inherit" if e.inherit else "tutors" if e.tutors is not None else "train"
        raise UserError(f"task.teacher is missing; evaluator.{what} needs a teacher")
    tutoring(e.tutors)
    if e.strength_weights is not None and e.strengths is None:
        raise UserError("evaluator.strength_weights is not allowed without strengths")
    if e.strengths is not None and not (e.strengths and e.attacks):
        raise UserError("evaluator.strengths: at least one strength and an attack are needed")
    for eps in e.strengths or ():
        _check_strength(eps, e.task.threat.norm)
    if e.strengths is not None and e.strength_weights is not None:
        _check_weights(e.strengths, e.strength_weights)
    if e.tutors is not None and e.recipe is not None and e.recipe.replays > 1:
        raise UserError(
            f"evaluator.train.replays: {e.recipe.replays} is not allowed with tutors, which add to "
            "the loss; 1 is"
        )


def _check_strength(eps: Any, norm: str) -> None:
    try:
        parse(ThreatModel, {"norm": norm, "eps": eps}, "evaluator.strengths")
    except UserError as error:
        said = str(error).removeprefix("evaluator.strengths.eps: ").removeprefix("threat.eps: ")
        raise UserError(f"evaluator.strengths: {said}") from None


def _check_weights(strengths: list[Any], weights: list[Any]) -> None:
    if len(weights) != len(strengths):
        raise UserError(
            f"evaluator.strength_weights: {len(weights)} for {len(strengths)} strengths are not "
            "allowed; one for each is"
        )
    for weight in weights:
        number("evaluator.strength_weights", weight, 0)
    if not any(weights):
        raise UserError("evaluator.strength_weights: at least one must be above 0")


def tutoring(tutors: Mapping[str, Any] | None) -> Any:
    """What the tutors add to the loss; None without any.

    Raises
    ------
    UserError
        If a setting is wrong.
    """
    if tutors is None:
        return None
    from nni_robust.distillation import CrossLayerTerm

    try:
        return CrossLayerTerm(**tutors)
    except TypeError as e:
        raise UserError(f"evaluator.tutors: {e}") from e
