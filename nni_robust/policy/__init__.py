"""Policies that propose architectures for tasks, learned by ``rl-compressor``, used without NNI."""

from __future__ import annotations

from nni_robust.policy.choices import LEVELS, Choice, levels_of, read_choices
from nni_robust.policy.context import Context, attack_kind
from nni_robust.policy.files import load_policy, save_policy
from nni_robust.policy.options import Draw, Options
from nni_robust.policy.policy import (
    Policy,
    State,
    choice_log_probs,
    options_for,
    teacher_sample,
)

__all__ = [
    "LEVELS",
    "Choice",
    "Context",
    "Draw",
    "Options",
    "Policy",
    "State",
    "attack_kind",
    "choice_log_probs",
    "levels_of",
    "load_policy",
    "options_for",
    "read_choices",
    "save_policy",
    "teacher_sample",
]
