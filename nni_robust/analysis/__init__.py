"""What can be learnt from finished candidates: fronts, correlations, topology, FSP distance.

The study of RobNet's candidates in one go::

    from nni_robust.analysis import load_study, study_findings

    for sentence in study_findings(load_study("runs/robnet-study")).sentences:
        print(sentence)

The names below are imported on first use: only those that begin with `fsp_` (and are no finding)
and those of the Lipschitz value load PyTorch, and only the linear probe scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_robust.analysis.budget import budget_finding as budget_finding
    from nni_robust.analysis.comparison import Comparison as Comparison
    from nni_robust.analysis.comparison import compare_runs as compare_runs
    from nni_robust.analysis.compression import RunTopology as RunTopology
    from nni_robust.analysis.compression import StageTopology as StageTopology
    from nni_robust.analysis.compression import compare_topologies as compare_topologies
    from nni_robust.analysis.compression import keep_ratios as keep_ratios
    from nni_robust.analysis.compression import mean_keep as mean_keep
    from nni_robust.analysis.compression import run_topology as run_topology
    from nni_robust.analysis.density import density_finding as density_finding
    from nni_robust.analysis.findings import StudyFindings as StudyFindings
    from nni_robust.analysis.findings import study_findings as study_findings
    from nni_robust.analysis.fsp import fsp_distance as fsp_distance
    from nni_robust.analysis.fsp import fsp_matrix as fsp_matrix
    from nni_robust.analysis.fsp import fsp_taps as fsp_taps
    from nni_robust.analysis.fsp_measure import fsp_record as fsp_record
    from nni_robust.analysis.lipschitz import lipschitz_value as lipschitz_value
    from nni_robust.analysis.lipschitz import local_lipschitz as local_lipschitz
    from nni_robust.analysis.pareto import pareto_front as pareto_front
    from nni_robust.analysis.probe import linear_probe as linear_probe
    from nni_robust.analysis.rejection import reject_by_fsp as reject_by_fsp
    from nni_robust.analysis.smoothness import fsp_finding as fsp_finding
    from nni_robust.analysis.statistics import Correlation as Correlation
    from nni_robust.analysis.statistics import correlate as correlate
    from nni_robust.analysis.statistics import kendall_tau as kendall_tau
    from nni_robust.analysis.statistics import pearson as pearson
    from nni_robust.analysis.statistics import spearman as spearman
    from nni_robust.analysis.study import StudyRow as StudyRow
    from nni_robust.analysis.study import load_study as load_study
    from nni_robust.analysis.study import read_csv as read_csv
    from nni_robust.analysis.study import to_csv as to_csv
    from nni_robust.analysis.topology import Topology as Topology
    from nni_robust.analysis.topology import robnet_topology as robnet_topology

_HOMES = {
    "Comparison": "comparison",
    "Correlation": "statistics",
    "RunTopology": "compression",
    "StageTopology": "compression",
    "StudyFindings": "findings",
    "StudyRow": "study",
    "Topology": "topology",
    "budget_finding": "budget",
    "compare_runs": "comparison",
    "compare_topologies": "compression",
    "correlate": "statistics",
    "density_finding": "density",
    "fsp_distance": "fsp",
    "fsp_finding": "smoothness",
    "fsp_matrix": "fsp",
    "fsp_record": "fsp_measure",
    "fsp_taps": "fsp",
    "keep_ratios": "compression",
    "kendall_tau": "statistics",
    "linear_probe": "probe",
    "lipschitz_value": "lipschitz",
    "load_study": "study",
    "local_lipschitz": "lipschitz",
    "mean_keep": "compression",
    "pareto_front": "pareto",
    "pearson": "statistics",
    "read_csv": "study",
    "reject_by_fsp": "rejection",
    "robnet_topology": "topology",
    "run_topology": "compression",
    "spearman": "statistics",
    "study_findings": "findings",
    "to_csv": "study",
}
__all__ = [
    "Comparison",
    "Correlation",
    "RunTopology",
    "StageTopology",
    "StudyFindings",
    "StudyRow",
    "Topology",
    "budget_finding",
    "compare_runs",
    "compare_topologies",
    "correlate",
    "density_finding",
    "fsp_distance",
    "fsp_finding",
    "fsp_matrix",
    "fsp_record",
    "fsp_taps",
    "keep_ratios",
    "kendall_tau",
    "linear_probe",
    "lipschitz_value",
    "load_study",
    "local_lipschitz",
    "mean_keep",
    "pareto_front",
    "pearson",
    "read_csv",
    "reject_by_fsp",
    "robnet_topology",
    "run_topology",
    "spearman",
    "study_findings",
    "to_csv",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
