"""NNI evaluators: how one candidate is trained, attacked and scored."""

from __future__ import annotations

from .adversarial_training import AdversarialTraining
from .tabular import TabularEvaluator

__all__ = ["AdversarialTraining", "TabularEvaluator"]
