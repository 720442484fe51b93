"""Trained results that others can load: a folder in the layout of model hubs, and other forms.

``model.safetensors`` (weights), ``config.json`` (architecture and sha256), ``README.md`` (model
card), ``results.json`` (figures); on request ONNX, ``torch.export``, one PyTorch file without NNI,
and an entry for RobustBench's leaderboard. See ``docs/exchange.md``.
"""

from __future__ import annotations

from nni_robust.exchange._export import EXTRAS, Exported, export_folder, load
from nni_robust.exchange._folder import FORMAT, is_folder, read_folder
from nni_robust.exchange._forms import TOLERANCE
from nni_robust.exchange._records import (
    EVALUATION,
    Trained,
    evaluation_beside,
    flags_of,
    network_file,
    read_trained,
    with_results,
)
from nni_robust.exchange.robustbench import leaderboard_entry
from nni_robust.exchange.standalone import standalone_source

__all__ = [
    "EVALUATION",
    "EXTRAS",
    "FORMAT",
    "TOLERANCE",
    "Exported",
    "Trained",
    "evaluation_beside",
    "export_folder",
    "flags_of",
    "is_folder",
    "leaderboard_entry",
    "load",
    "network_file",
    "read_folder",
    "read_trained",
    "standalone_source",
    "with_results",
]
