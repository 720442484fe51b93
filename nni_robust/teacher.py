"""Teachers: trained networks that a search compresses or learns from.

A teacher is loaded where its weights are (:func:`load_teacher`), or trained once, as an NNI trial
of its own (:class:`TeacherTraining`), whose weights other trials take from the store
(:func:`teacher_from_store`).
"""

from __future__ import annotations

from nni_robust._teacher import Teacher, absolute_teacher
from nni_robust._teacher_loading import load_teacher, source_key, teacher_from_store
from nni_robust._teacher_training import TeacherTraining

__all__ = [
    "Teacher",
    "TeacherTraining",
    "absolute_teacher",
    "load_teacher",
    "source_key",
    "teacher_from_store",
]
