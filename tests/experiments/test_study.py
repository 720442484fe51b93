"""RobNet's study, small: supernet, candidates, findings, screening, from shipped files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nni_robust import load_architecture
from nni_robust.analysis import load_study, read_csv, robnet_topology, study_findings
from nni_robust.architecture.space import open_space
from nni_robust.cli import main
from nni_robust.experiments import load_experiment, run_experiment
from nni_robust.report import read_findings
from nni_robust.report._study import study_figures
from nni_robust.store import Store, read_json, read_records

#: A shipped file, made so small that a run takes seconds.
SMALL = [
    "task.dataset=digits",
    "task.threat.eps=0.1",
    "task.validation=0.2",
    "task.train_limit=64",
    "task.validation_limit=32",
    "space.init_channels=2",
    "space.cells=3",
    "strategy.supernet.epochs=1",
    "strategy.supernet.schedule=constant",
    "strategy.supernet.milestones=[]",
    "strategy.supernet.batch_size=32",
    "strategy.supernet.attack.steps=1",
    "evaluator.train.epochs=1",
    "evaluator.train.batch_size=32",
    "evaluator.train.attack.steps=1",
    "evaluator.attacks=[fgsm]",
    "evaluator.recalibrate_batches=1",
    "final=null",
    "nni.engine=sequential",
    "nni.trial_gpus=0",
]


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)


def quiet(line: str) -> None:
    pass


def test_study_from_supernet_to_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*SMALL, "strategy.candidates=30", "evaluator.fsp=16"]
    arguments = [word for change in changes for word in ("--set", change)]
    folder = tmp_path / "run"
    assert main(["run", "robnet-study", "--out", str(folder), *arguments]) == 0
    said = capsys.readouterr().out

    records = read_records(folder / "candidates.jsonl")
    candidates = records[1:]
    assert [r["phase"] for r in records] == ["supernet"] + ["candidate"] * 30
    assert records[0]["attributes"] == {}
    for record in candidates:
        shape = robnet_topology(record["code"])
        counted = record["attributes"]
        assert (counted["convs"], counted["identities"]) == (shape.convs, shape.identities)
        assert counted["density"] == pytest.approx(shape.density)
        assert len(record["fsp"]["distance"]) == 3
        assert record["fsp"]["pictures"] == 16

    # The table holds what the records hold, and the sentences are those of the table.
    rows = read_csv(folder / "study.csv")
    assert rows == load_study(folder)
    assert [row.robust for row in rows] == [r["metrics"]["default"] for r in candidates]
    assert [row.gap for row in rows] == [r["fsp"]["clean"] - r["fsp"]["robust"] for r in candidates]
    findings = read_json(folder / "findings.json")
    sentences = list(study_findings(rows, seed=0).sentences)
    assert findings["sentences"] == sentences
    assert findings["fsp"]["n"] == 30
    assert all(sentence in said for sentence in sentences)

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="findings"' in page
    for name in ("density", "probe", "budget", "fsp-cells", "fsp-gap"):
        assert f'id="fig-{name}-' in page
    assert load_architecture(str(folder / "best.yaml")).sample in [r["sample"] for r in candidates]

    assert main(["report", str(folder)]) == 0
    again = capsys.readouterr().out
    assert all(sentence in again for sentence in sentences)
    # A damaged study costs the report its figures and nothing else.
    (folder / "study.csv").write_text("nonsense")
    assert study_figures(folder) == {}
    (folder / "findings.json").write_text("{")
    assert read_findings(folder) == []


def test_screening_fine_tunes_the_least_moved_only(tmp_path: Path) -> None:
    changes = [
        *SMALL,
        "strategy.screen.draws=10",
        "strategy.screen.keep=0.3",
        "strategy.screen.last=2",
        "strategy.screen.pictures=16",
        "evaluator.fsp=16",
        "evaluator.train.attack.random_start=false",
    ]
    lines: list[str] = []
    folder = run_experiment(
        "robnet-free", out=str(tmp_path / "run"), overrides=changes, report=lines.append
    )
    records = read_records(folder / "candidates.jsonl")
    assert [r["phase"] for r in records] == ["supernet", "screening"] + ["candidate"] * 3
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "screening",
        *(f"candidate {k} of 3 (trial {k + 1})" for k in (1, 2, 3)),
    ]

    # Ranked by hand over the stored distances: the three smallest means of the last two cells.
    store = Store(folder / "store")
    record = store.result(records[1]["key"])
    assert record is not None
    screened = record["screened"]
    assert len(screened) == 10
    means = [sum(entry["distance"][-2:]) / 2 for entry in screened]
    least = sorted(sorted(range(10), key=lambda k: means[k])[:3])
    (handed,) = [json.loads(p.read_text()) for p in (folder / "store").glob("*/samples.json")]
    assert [r["sample"] for r in records[2:]] == [handed[k] for k in least]
    # A survivor's own trial measures the same weights and finds the same.
    assert [r["fsp"] for r in records[2:]] == [screened[k] for k in least]
    assert not (folder / "findings.json").exists()  # three candidates say nothing

    # Resumed, nothing is measured again; killed in between, it goes on where it was.
    run_experiment(str(folder), resume=True, report=quiet)
    assert read_records(folder / "candidates.jsonl") == records
    part = store.folder(records[1]["key"])
    whole = (part / "screened.jsonl").read_text()
    (part / "record.json").unlink()
    first = whole.splitlines(keepends=True)[0].replace('"pictures": 16', '"pictures": 99')
    (part / "screened.jsonl").write_text(first)
    run_experiment(str(folder), resume=True, report=quiet)
    again = store.result(records[1]["key"])
    assert again is not None
    assert again["screened"][0]["pictures"] == 99
    assert again["screened"][1:] == screened[1:]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("robnet-small", 0, 7), ("robnet-medium", 8, 10), ("robnet-large", 11, 14)],
)
def test_budget_files(name: str, low: int, high: int, tmp_path: Path) -> None:
    """The bounds are met by the paper's own network and keep two candidates of a tiny run."""
    experiment = load_experiment(name)
    space = open_space(experiment.space.name, experiment.space.arguments, 10)
    published = load_architecture(name)
    assert space.cost(published.sample) == published.cost()
    counted: Any = space.attributes(published.sample)
    bounds = experiment.strategy.arguments["require"]
    for key, (lowest, highest) in bounds.items():
        assert lowest is None or lowest <= counted[key]
        assert highest is None or counted[key] <= highest
    folder = run_experiment(
        name,
        out=str(tmp_path / "run"),
        overrides=[*SMALL, "strategy.candidates=2"],
        report=quiet,
    )
    found = [robnet_topology(r["code"]) for r in read_records(folder / "candidates.jsonl")[1:]]
    assert len(found) == 2
    for shape in found:
        assert low <= shape.convs <= high
        assert shape.density >= 0.5
        assert shape.direct_convs / 5 > 0.5


def test_candidates_of_another_space_have_no_findings(tmp_path: Path) -> None:
    from nni_robust.experiments._findings import write_findings

    lines: list[str] = []
    (tmp_path / "candidates.jsonl").write_text(
        "".join(
            json.dumps(
                {"phase": "candidate", "status": "ok", "code": code, "index": 1, "metrics": {}}
            )
            + "\n"
            for code in ["wide-28-10"] * 12
        )
    )
    write_findings(tmp_path, 0, lines.append)
    assert lines == []
    # A RobNet's record without its score: a note, and the run goes on.
    text = (tmp_path / "candidates.jsonl").read_text().replace("wide-28-10", "33123210120232")
    (tmp_path / "candidates.jsonl").write_text(text)
    write_findings(tmp_path, 0, lines.append)
    assert lines == [
        "no findings about the candidates: candidate 1 has no metric 'default' (it has: none)"
    ]
    assert not (tmp_path / "findings.json").exists()
