"""What a network keeps of its teacher, against the figure of RC-NAS and hand-made runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust.analysis import (
    compare_topologies,
    keep_ratios,
    mean_keep,
    run_topology,
)
from nni_robust.architecture import load_architecture
from nni_robust.errors import UserError
from nni_robust.search_spaces import RobNetSpace, WideResNetSpace
from nni_robust.store import append_record

#: Printed in the figure of topologies: shares of depth and of width, and which stages have an R.
PRINTED = {
    "rcnas-20g-clean": ([0.75, 0.75, 0.56], [0.79, 0.71, 0.57], []),
    "rcnas-20g-aa": ([0.94, 0.94, 0.31], [0.93, 0.93, 0.29], [3]),
    "rcnas-40g-clean": ([0.67, 0.67, 0.61], [0.62, 0.69, 0.50], []),
    "rcnas-40g-aa": ([0.78, 0.78, 0.44], [0.81, 0.81, 0.38], [3]),
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_keep_ratios(name: str) -> None:
    """Two digits, rounded either way where the third is a 5 (10/16 is printed as 0.62)."""
    architecture = load_architecture(name)
    assert architecture.provenance["kind"] == "figure"
    stages = keep_ratios(architecture)
    depths, widths, robust = PRINTED[name]
    for stage, depth, width in zip(stages, depths, widths, strict=True):
        assert abs(stage.keep_depth - depth) <= 0.005 + 1e-9
        assert abs(stage.keep_width - width) <= 0.005 + 1e-9
        assert stage.teacher_block == "basic"
        assert (stage.block == "robust") == (stage.stage in robust)


def test_a_sample_beside_the_teacher_of_its_space() -> None:
    space = WideResNetSpace(depths=[4, 4, 2], widths=[8, 4, 4], blocks="robust")
    sample = space.decode("3x2 4x1 1x3")
    first, second, third = keep_ratios(sample, space)
    assert (first.keep_depth, first.keep_width) == (0.75, 0.25)
    assert (second.depth, second.teacher_depth, second.keep_width) == (4, 4, 0.25)
    assert (third.keep_depth, third.keep_width, third.block) == (0.5, 0.75, "robust")
    with pytest.raises(UserError, match="keep ratios exist for wide-resnet"):
        keep_ratios({}, RobNetSpace())


def run(folder: Path, attack: Any, scores: dict[str, float | None], **teacher: Any) -> Path:
    config = {
        "name": folder.name,
        "task": {"dataset": "digits", "attack": attack},
        "space": {"name": "wide-resnet", "depths": [4, 4, 4], "widths": [4, 4, 4]},
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    file = folder / "candidates.jsonl"
    append_record(file, {"phase": "teacher", "sample": {}, "status": "ok", **teacher})
    for code, score in scores.items():
        record: dict[str, Any] = {"phase": "candidate", "sample": WideResNetSpace.decode(code)}
        if score is None:
            append_record(file, {**record, "status": "failed", "metrics": None})
        else:
            metrics = {"default": score, "lipschitz": 10 * score}
            append_record(file, {**record, "status": "ok", "metrics": metrics})
    return folder


def test_two_runs_are_compared(tmp_path: Path) -> None:
    clean = run_topology(
        run(
            tmp_path / "clean",
            "clean",
            {"2x2 2x2 2x2": 0.5, "4x4 4x4 4x4": 0.1, "1x1 1x1 1x1": None, "4x2 2x2 2x4": 0.4},
        ),
        top=2,
    )
    attacked = run_topology(
        run(
            tmp_path / "attacked",
            {"name": "autoattack"},
            {"4x4 4x4 1x1": 0.3, "4x4 4x4 1x2": 0.2},
            lipschitz=7.5,
        ),
        label="AA",
    )
    assert (clean.attack, attacked.attack) == ("clean", "autoattack")
    assert (clean.score, clean.lipschitz, clean.teacher_lipschitz) == (0.5, 5.0, None)
    assert (attacked.lipschitz, attacked.teacher_lipschitz) == (3.0, 7.5)
    assert [stage.depth for stage in clean.best] == [2, 2, 2]
    assert len(clean.top) == 2
    assert mean_keep(clean.top) == [(0.75, 0.5), (0.5, 0.5), (0.5, 0.75)]
    assert mean_keep(attacked.top) == [(1.0, 1.0), (1.0, 1.0), (0.25, 0.375)]
    sentences = compare_topologies(clean, attacked)
    assert sentences[0] == (
        "Stage 1: 'AA' keeps 100 % of the depth and 100 % of the width, 25 points more and "
        "50 points more than 'clean'."
    )
    assert "25 points less and 38 points less" in sentences[2]
    assert sentences[3] == ("Local Lipschitz value of the best network: 3 for 'AA', 5 for 'clean'.")


def test_a_network_tried_again_counts_once_with_its_last_score(tmp_path: Path) -> None:
    folder = run(tmp_path / "again", "fgsm", {"2x2 2x2 2x2": 0.5, "1x1 1x1 1x1": 0.4})
    sample = WideResNetSpace.decode("2x2 2x2 2x2")
    append_record(
        folder / "candidates.jsonl", {"sample": sample, "metrics": {"default": 0.3}, "status": "ok"}
    )
    found = run_topology(folder)
    assert [stage.depth for stage in found.best] == [1, 1, 1]
    assert len(found.top) == 2


def test_runs_without_a_topology(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run 'none': no candidate has finished"):
        run_topology(run(tmp_path / "none", "fgsm", {"1x1 1x1 1x1": None}))
    with pytest.raises(UserError, match="no file"):
        run_topology(tmp_path)
