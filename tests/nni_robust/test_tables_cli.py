"""``nni-robust table``: from a run that trains to a table that a search looks up in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nni_robust import evaluate
from nni_robust.cli import main
from nni_robust.data import load_task
from nni_robust.errors import UserError
from nni_robust.experiments import load_experiment, run_experiment, score_on_test
from nni_robust.search_spaces import WideResNetSpace
from nni_robust.store import read_records
from nni_robust.tables import open_table
from nni_robust.training.weights import load_weights

SPACE: dict[str, Any] = {
    "depths": [1, 1, 1],
    "widths": [1, 1, 2],
    "stem_channels": 4,
    "base_channels": [2, 4, 4],
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("table") / "experiment.yml"
    settings: dict[str, Any] = {
        "task": {"dataset": "digits", "threat": {"eps": 0.1}, "train_limit": 64, "test_limit": 50},
        "space": {"name": "wide-resnet", **SPACE},
        "strategy": "grid-search",
        "evaluator": {
            "name": "adversarial-training",
            "train": {"epochs": 1, "batch_size": 32, "validation_attack": None,
                      "attack": {"steps": 1}},
            "attacks": ["fgsm"],
            "score_limit": 40,
        },
        "final": None,
        "nni": {"engine": "sequential", "trials": 2},
    }  # fmt: skip
    path.write_text(json.dumps(settings), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def runs(file: str) -> list[Path]:
    return [
        run_experiment(
            file,
            out=str(Path(file).with_name(f"run{seed}")),
            overrides=[f"seed={seed}"],
            html=False,
            report=lambda line: None,
        )
        for seed in (0, 1)
    ]


def test_the_table_has_the_search_and_the_test_split(
    file: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.jsonl"
    code = main(["table", str(runs[0]), "--out", str(out), "--repeat", str(runs[1])])
    assert code == 0
    assert f"{out}: 2 architectures, columns default, clean, fgsm@0.1" in capsys.readouterr().out

    table, settings = open_table(str(out)), load_experiment(file)
    test = load_task(settings.task, test=True).test
    second = {json.dumps(r["sample"]): r for r in read_records(runs[1] / "candidates.jsonl")}
    for record in read_records(runs[0] / "candidates.jsonl"):
        row = table.row(record["sample"], settings.task)
        for column, value in record["metrics"].items():
            assert row[column] == pytest.approx(value, abs=1e-5)
        again = second[json.dumps(record["sample"])]["metrics"]
        assert row["test second seed default"] == pytest.approx(again["default"], abs=1e-5)
        # The stored network, attacked on the test split by another way.
        network = WideResNetSpace(10, **SPACE).freeze(record["sample"])
        load_weights(network, runs[0] / "store" / record["key"] / "weights.safetensors")
        found = evaluate(
            network.eval(), test, ["fgsm"], threat=settings.task.threat, limit=40
        ).metrics()
        assert row["test fgsm@0.1"] == pytest.approx(found["fgsm@0.1"], abs=1e-5)
        assert row["test clean"] == pytest.approx(found["clean"], abs=1e-5)


def test_a_second_call_attacks_nothing(runs: list[Path]) -> None:
    first = score_on_test(runs[1], report=lambda line: None)
    for weights in (runs[1] / "store").glob("*/weights.safetensors"):
        weights.unlink()
    assert score_on_test(runs[1], report=lambda line: None) == first
    (runs[1] / "test.jsonl").unlink()
    with pytest.raises(UserError, match="weights of a candidate are gone"):
        score_on_test(runs[1], report=lambda line: None)


def test_without_the_test_split(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.jsonl"
    assert main(["table", str(runs[0]), "--out", str(out), "--no-test", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rows"] == 2
    assert not any(column.startswith("test") for column in shown["columns"])


def test_unreliable_rows_are_kept_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of four candidates answer nothing else than one class, and look like the best."""
    from nni_robust.store import append_record

    reasons = [["one-answer: all the same"], [], ["one-answer: all the same"], None]
    for width, (score, found) in enumerate(zip((0.4, 0.2, 0.5, 0.1), reasons, strict=True)):
        record = {"phase": "candidate", "status": "ok", "index": width, "key": str(width)}
        record |= {"sample": {"width": width}, "metrics": {"default": score}}
        record |= {} if found is None else {"reliability": {"unreliable": found}}
        append_record(tmp_path / "candidates.jsonl", record)
    argv = ["table", str(tmp_path), "--out", str(tmp_path / "t.jsonl"), "--no-test"]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "UNRELIABLE: 2 of 4 rows" in told
    assert "number 1 (one-answer), number 2 (one-answer); " in told
    assert "of 1 of 4 rows the run has no reliability checks" in told
    flags = {r["sample"]["width"]: r["reliability"] for r in read_records(tmp_path / "t.jsonl")}
    assert flags == {0: "one-answer", 1: "", 2: "one-answer", 3: "unknown"}
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unreliable"] == [
        {"sample": {"width": 2}, "place": 1, "failed": ["one-answer"]},
        {"sample": {"width": 0}, "place": 2, "failed": ["one-answer"]},
    ]


def test_a_run_of_look_ups_makes_no_table_with_a_test_split(tmp_path: Path) -> None:
    run = run_experiment(
        "rcnas-lookup-digits",
        out=str(tmp_path / "run"),
        overrides=["nni.trials=10"],
        html=False,
        report=lambda line: None,
    )
    with pytest.raises(UserError, match=r"'tabular' of .* keeps no weights"):
        score_on_test(run)
    assert main(["table", str(tmp_path), "--out", str(tmp_path / "t.jsonl")]) == 2
