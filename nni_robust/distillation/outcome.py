"""What a search for tutors found, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nni_robust.distillation.tutors import TutorMatrix

__all__ = ["SearchOutcome", "found"]


@dataclasses.dataclass(frozen=True)
class SearchOutcome:
    """What a search found; JSON-able by ``dataclasses.asdict``.

    Parameters
    ----------
    sample
        The architecture: the largest logit of each choice.
    probabilities
        Softmax of the logits of each choice, in the order of its values.
    tutors
        For each student layer a mapping: ``student``, ``tutor``, ``teacher`` (its number),
        ``probability`` and ``margin`` (over the second best).
    matrix
        Probabilities (n_s, n_t) of all pairs.
    students, layers
        Layers of the student and of the teachers in order of depth: ``name``, ``kind``, ``side``
        (height of the map), and of teachers ``teacher``, the teacher's number.
    history
        One mapping per epoch.
    """

    sample: dict[str, Any]
    probabilities: dict[str, list[float]]
    tutors: list[dict[str, Any]]
    matrix: list[list[float]]
    students: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    history: list[dict[str, float]]


def found(
    sample: dict[str, Any],
    choices: Mapping[str, Tensor],
    matrix: TutorMatrix,
    students: list[dict[str, Any]],
    layers: list[dict[str, Any]],
    history: list[dict[str, float]],
) -> SearchOutcome:
    """The outcome that the logits of choices and tutors stand for.

    Parameters
    ----------
    sample
        The architecture.
    choices
        Logits of each choice.
    matrix
        Logits of the tutors.
    students, layers, history
        See :class:`SearchOutcome`.
    """
    probabilities = matrix.probabilities().cpu()
    chosen, margins = matrix.harden().tolist(), matrix.margin().tolist()
    tutors = [
        {
            "student": students[i]["name"],
            "tutor": layers[j]["name"],
            "teacher": layers[j]["teacher"],
            "probability": round(float(probabilities[i, j]), 6),
            "margin": round(margins[i], 6),
        }
        for i, j in enumerate(chosen)
    ]
    return SearchOutcome(
        sample=sample,
        probabilities={
            label: [round(p, 6) for p in w.detach().softmax(0).tolist()]
            for label, w in choices.items()
        },
        tutors=tutors,
        matrix=[[round(p, 6) for p in row] for row in probabilities.tolist()],
        students=students,
        layers=layers,
        history=history,
    )
