"""Cross-layer distillation: layers of a student learn from layers of one or more teachers.

After RNAS-CL (Nath, Wang, Yang, "RNAS-CL: Robust Neural Architecture Search by Cross-Layer
Knowledge Distillation", 2301.08092), with tutors that are really learned: see
:mod:`nni_robust.distillation.tutors`.
"""

from __future__ import annotations

from nni_robust.distillation.mappings import MAPPINGS, fixed_mapping
from nni_robust.distillation.maps import (
    MapConfig,
    MapSession,
    attention_map,
    describe_layers,
    distances,
    tap_sides,
)
from nni_robust.distillation.networks import Unrelaxed
from nni_robust.distillation.outcome import SearchOutcome
from nni_robust.distillation.pictures import split_pictures
from nni_robust.distillation.search import search_tutors
from nni_robust.distillation.settings import CostTerm, SearchSettings
from nni_robust.distillation.taps import TAP_RULES, TapPoint, TapSpec, find_taps
from nni_robust.distillation.term import CrossLayerTerm, ResolvedTutors
from nni_robust.distillation.tutors import TutorMatrix

__all__ = [
    "MAPPINGS",
    "TAP_RULES",
    "CostTerm",
    "CrossLayerTerm",
    "MapConfig",
    "MapSession",
    "ResolvedTutors",
    "SearchOutcome",
    "SearchSettings",
    "TapPoint",
    "TapSpec",
    "TutorMatrix",
    "Unrelaxed",
    "attention_map",
    "describe_layers",
    "distances",
    "find_taps",
    "fixed_mapping",
    "search_tutors",
    "split_pictures",
    "tap_sides",
]
