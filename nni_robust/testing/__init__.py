"""Conformance suites: does a space, strategy, evaluator or attack of yours fit?

Inherit a class in a test file, say what is to be tested, and pytest runs its tests (the shape is
Optuna's)::

    class TestMyAttack(AttackConformance):
        def make_attack(self, threat):
            return MyAttack(threat)

Class attributes say what is claimed, such as a supernet or a state. What is not claimed is either
tested to be refused, or shown by pytest as skipped, with the claim in the reason.
"""

from __future__ import annotations

try:
    import pytest
except ImportError:
    raise ImportError("nni_robust.testing needs pytest: pip install pytest") from None

# Failing assertions then show their values, as in a test file; before the modules are imported.
_MODULES = ("attacks", "checks", "evaluators", "spaces", "strategies")
pytest.register_assert_rewrite(*(f"{__name__}._{name}" for name in _MODULES))

from nni_robust.testing._attacks import AttackConformance  # noqa: E402
from nni_robust.testing._evaluators import EvaluatorConformance  # noqa: E402
from nni_robust.testing._parts import HashEvaluator, TinySpace  # noqa: E402
from nni_robust.testing._spaces import SpaceConformance  # noqa: E402
from nni_robust.testing._strategies import StrategyConformance  # noqa: E402

__all__ = [
    "AttackConformance",
    "EvaluatorConformance",
    "HashEvaluator",
    "SpaceConformance",
    "StrategyConformance",
    "TinySpace",
]
