"""The evaluator that looks up: NNI's strategies and engines work on it, and nothing is trained."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from nni_robust.errors import UserError
from nni_robust.evaluators import TabularEvaluator
from nni_robust.experiments import load_experiment, run_experiment
from nni_robust.store import read_records
from nni_robust.tables import open_table

SMALL = {
    "name": "wide-resnet", "depths": [2, 2, 2], "widths": [3, 3, 3], "stem_channels": 8,
    "base_channels": [4, 8, 16],
}  # fmt: skip


def write_file(tmp_path: Path, **changes: Any) -> str:
    file = tmp_path / "experiment.yml"
    settings = {
        "task": {"dataset": "digits", "threat": {"eps": 0.1}},
        "space": SMALL,
        "strategy": "random",
        "evaluator": {"name": "tabular", "table": str(tmp_path / "table.jsonl")},
        "final": None,
        "nni": {"engine": "sequential", "trials": 12},
        **changes,
    }
    file.write_text(json.dumps(settings), encoding="utf-8")
    return str(file)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of the networks whose last stage is not two blocks deep: half of the space."""
    lines = []
    for code in range(216):
        widths = [code // 3**k % 3 + 1 for k in range(3)]
        depths = [code // (27 * 2**k) % 2 + 1 for k in range(3)]
        if depths[2] == 2:
            continue
        sample = {}
        for stage in range(3):
            sample[f"stage{stage + 1}/depth"] = depths[stage]
            sample[f"stage{stage + 1}/width"] = widths[stage]
        metrics = {
            "default": 0.25 + code / 1000, "clean": 0.75 - code / 1000,
            "pgd10@0.1": 0.25 + code / 1000, "test pgd10@0.1": 0.5, "macs": code, "params": code,
        }  # fmt: skip
        lines.append(json.dumps({"sample": sample, "metrics": metrics}))
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("strategy", ["random", "regularized-evolution", "tpe", "grid-search"])
def test_strategies_of_nni_search_the_table(table: Path, tmp_path: Path, strategy: str) -> None:
    part = {"name": strategy}
    if strategy == "regularized-evolution":
        part |= {"population_size": 4, "sample_size": 2, "mutation_prob": 0.5}  # type: ignore[dict-item]
    file = write_file(tmp_path, strategy=part)
    run = run_experiment(file, out=str(tmp_path / "run"), html=False, report=lambda line: None)
    records = read_records(run / "candidates.jsonl")
    assert len(records) == 12
    looked_up = open_table(str(table))
    task = load_experiment(file).task
    for record in records:
        depth = record["sample"]["stage3/depth"]
        if depth == 2:  # not in the table: a failed trial with a sentence
            assert record["status"] == "failed"
            assert "stage3/depth 2 is not among its values (1)" in record["error"]
            continue
        row = looked_up.row(record["sample"], task)
        assert record["metrics"] == {
            "default": row["pgd10@0.1"], "clean": row["clean"], "pgd10@0.1": row["pgd10@0.1"],
            "params": row["params"], "macs": row["macs"], "seconds": 0.0,
        }  # fmt: skip
    assert {r["status"] for r in records} == {"ok", "failed"}
    assert not list((run / "store").glob("*/weights.safetensors"))


def test_the_task_chooses_what_is_maximised(table: Path, tmp_path: Path) -> None:
    evaluator = TabularEvaluator(table=str(table), task={"threat": {"eps": 0.1}})
    sample = next(open_table(str(table)).samples())
    clean = evaluator.variant(task={"attack": "clean", "threat": {"eps": 0.1}})
    attacked = evaluator.variant(task={"attack": "pgd10", "threat": {"eps": 0.1}}, seed=7)
    named = TabularEvaluator(table=str(table), metric="clean")
    row = open_table(str(table)).row(sample, evaluator.task)
    assert evaluator.look_up(sample)["metrics"]["default"] == row["default"]
    assert clean.look_up(sample)["metrics"]["default"] == row["clean"]
    assert attacked.look_up(sample)["metrics"]["default"] == row["pgd10@0.1"]
    assert named.look_up(sample)["metrics"]["default"] == row["clean"]
    record = evaluator.look_up(sample)
    assert record["test"] == {"pgd10@0.1": 0.5}
    assert not any(key.startswith("test") for key in record["metrics"])
    assert clean.settings() != attacked.settings()
    assert attacked.seed == 7

    with pytest.raises(UserError, match=r"no column 'pgd10@8/255'"):
        evaluator.variant(task={"attack": "pgd10"})  # another strength is another task
    with pytest.raises(UserError, match="a search must not see the test split"):
        TabularEvaluator(table=str(table), metric="test pgd10@0.1")
    with pytest.raises(UserError, match="no column 'cw'"):
        TabularEvaluator(table=str(table), metric="cw").look_up(sample)


def test_the_training_service_is_answered_at_once(table: Path, tmp_path: Path) -> None:
    """NNI's own engine with its manager; only what is missing in the table becomes a process."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    nni = {"engine": "ts", "trials": 8, "port": port}
    # The last stage has one block in the table, and in these networks.
    space = {**SMALL, "depths": [2, 2, 1]}
    file = write_file(tmp_path, nni=nni, space=space)
    run = run_experiment(file, out=str(tmp_path / "run"), html=False, report=lambda line: None)
    records = read_records(run / "candidates.jsonl")
    assert [r["status"] for r in records] == ["ok"] * 8
    assert not list((run / "nni").rglob("trials/*"))


def test_look_ups_can_be_trials_of_their_own(table: Path, tmp_path: Path) -> None:
    settings = {"name": "tabular", "table": str(table), "as_trials": True}
    file = write_file(tmp_path, evaluator=settings, nni={"engine": "sequential", "trials": 6})
    run = run_experiment(file, out=str(tmp_path / "run"), html=False, report=lambda line: None)
    records = read_records(run / "candidates.jsonl")
    good = [r for r in records if r["status"] == "ok"]
    kept = [json.loads(f.read_text()) for f in (run / "store").glob("*/record.json")]
    assert len(kept) == len(good) > 0
    assert all(record["test"] == {"pgd10@0.1": 0.5} for record in kept)


def test_paths_mean_the_same_from_everywhere(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = TabularEvaluator(table="table.jsonl")
    monkeypatch.chdir("/")
    assert here.opened.name == "table"
    assert here.variant(seed=1).settings() == here.settings()


@pytest.mark.parametrize("name", ["rcnas-table-synthetic", "rcnas-table-digits"])
def test_shipped_experiments_are_sound(name: str) -> None:
    from nni_robust.experiments._preflight import preflight

    settings = load_experiment(name)
    data = preflight(settings)
    assert data.num_classes == 10


def test_the_nares_experiment_says_where_the_table_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nares\.txz of release v1\.0"):
        run_experiment("rcnas-table-nares", out=str(tmp_path / "run"))
