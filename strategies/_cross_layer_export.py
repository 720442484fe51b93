"""The map from student layers to tutors where no search made it, in the form of a search's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nni_robust.distillation import CrossLayerTerm, describe_layers, find_taps

__all__ = ["tutor_map"]


def tutor_map(
    term: CrossLayerTerm,
    student: nn.Module,
    teachers: Sequence[nn.Module],
    input_shape: Sequence[int],
) -> dict[str, Any]:
    """``students``, ``layers``, ``tutors`` and ``matrix`` of a fixed mapping.

    See :class:`nni_robust.distillation.SearchOutcome`. Tutors are named for student layers that
    have exactly one; all weights of a layer are in the matrix.
    """
    resolved = term.resolve(student, teachers, input_shape)
    students = describe_layers(student, find_taps(student, term.taps), input_shape)
    layers = [
        {**layer, "teacher": number}
        for number, teacher in enumerate(teachers)
        for layer in describe_layers(teacher, find_taps(teacher, term.teacher_taps), input_shape)
    ]
    rows = {layer["name"]: i for i, layer in enumerate(students)}
    columns = {(layer["teacher"], layer["name"]): j for j, layer in enumerate(layers)}
    used = [
        columns[number, point.name]
        for number, points in enumerate(resolved.teachers)
        for point in points
    ]
    matrix = torch.zeros(len(students), len(layers))
    for point, weights in zip(resolved.students, resolved.weights, strict=True):
        matrix[rows[point.name], used] = weights / weights.sum()
    tutors = [
        {
            "student": students[i]["name"],
            "tutor": layers[int(row.argmax())]["name"],
            "teacher": layers[int(row.argmax())]["teacher"],
            "probability": 1.0,
            "margin": 1.0,
        }
        for i, row in enumerate(matrix)
        if float(row.max()) == 1.0
    ]
    return {
        "students": students,
        "layers": layers,
        "tutors": tutors,
        "matrix": [[round(weight, 6) for weight in row] for row in matrix.tolist()],
    }
