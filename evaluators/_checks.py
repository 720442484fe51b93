"""Settings of an evaluator that do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nni_robust.errors import UserError

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
