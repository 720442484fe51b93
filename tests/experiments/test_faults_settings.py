"""Other settings on resume are refused by every road, with every difference; nni.* may change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.experiments import run_experiment
from nni_robust.store import read_json, read_records, write_json

Write = Callable[..., str]

QUICK: dict[str, Any] = {
    "task": {"dataset": "blank", "threat": {"eps": "8/255"}, "attack": "pgd20"},
    "space": {"name": "wide-resnet", "depths": [11, 11, 11], "widths": [16, 16, 16]},
    "strategy": {"name": "random"},
    "evaluator": {"name": "tabular", "table": "synthetic:wrn", "as_trials": True},
    "final": None,
    "nni": {"engine": "sequential", "trials": 3},
}
QUICK["space"] |= {"depth_values": [4, 5, 7, 9, 11], "width_values": [8, 10, 12, 14, 16]}


@pytest.fixture
def run(experiment_file: Write) -> Path:
    """A finished run."""
    return run_experiment(experiment_file(**QUICK), out="run", html=False, report=lambda line: None)


def edit(path: Path, **changes: Any) -> None:
    settings = yaml.safe_load(path.read_text())
    settings["seed"] = changes.pop("seed", settings.get("seed", 0))
    for section, change in changes.items():
        settings[section] |= change
    path.write_text(yaml.safe_dump(settings))


SAYS = "seed: 0 there, 7 now.*Only nni.* may change"


@pytest.mark.parametrize("road", ["file", "file edited", "folder --set", "folder edited"])
def test_every_road(run: Path, road: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "run.json").read_bytes(), (run / "candidates.jsonl").read_bytes()
    command = ["run", "tiny.yml", "--out", "run", "--resume"]
    if "folder" in road:
        command = ["run", "run", "--resume"]
    if "edited" in road:
        edit(run / "config.yaml" if "folder" in road else Path("tiny.yml"), seed=7)
    else:
        command += ["--set", "seed=7"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "seed: 0 there, 7 now" in error
    assert error.count("\n") == 1
    assert before == ((run / "run.json").read_bytes(), (run / "candidates.jsonl").read_bytes())


def test_every_difference_is_named(run: Path) -> None:
    edit(run / "config.yaml", strategy={"dedup": False}, task={"validation": 0.3})
    with pytest.raises(UserError) as told:
        run_experiment(str(run), resume=True)
    assert "strategy.dedup: '(absent)' there, False now" in str(told.value)
    assert "task.validation: " in str(told.value)
    assert "0.3 now" in str(told.value)


@pytest.mark.parametrize("road", ["file", "folder", "edited"])
def test_how_trials_run_may_change(run: Path, road: str) -> None:
    expected = read_records(run / "candidates.jsonl")
    changes = ["nni.port=9000", "nni.trial_threads=3"]
    if road == "edited":
        edit(run / "config.yaml", nni={"port": 9000})
        run_experiment(str(run), resume=True, html=False, report=lambda line: None)
    else:
        experiment, out = (str(run), None) if road == "folder" else ("tiny.yml", "run")
        run_experiment(
            experiment,
            out=out,
            resume=True,
            overrides=changes,
            html=False,
            report=lambda line: None,
        )
    assert yaml.safe_load((run / "config.yaml").read_text())["nni"]["port"] == 9000
    assert read_records(run / "candidates.jsonl") == expected


def test_edited_config_is_put_right_by_the_file(run: Path) -> None:
    """The file asks for what the run was begun with: it goes on, and writes config.yaml again."""
    original = (run / "config.yaml").read_text()
    edit(run / "config.yaml", seed=7)
    run_experiment("tiny.yml", out="run", resume=True, html=False, report=lambda line: None)
    assert (run / "config.yaml").read_text() == original


def test_run_of_an_earlier_version(run: Path) -> None:
    """It kept its settings in config.yaml only."""
    state = read_json(run / "run.json")
    del state["settings"]
    write_json(run / "run.json", state)
    with pytest.raises(UserError, match=SAYS):
        run_experiment(str(run), resume=True, overrides=["seed=7"])
    run_experiment(str(run), resume=True, html=False, report=lambda line: None)
    assert read_json(run / "run.json")["settings"]["seed"] == 0


def test_killed_before_any_work(experiment_file: Write, tmp_path: Path) -> None:
    """Between the making of the folder and config.yaml a run can begin again, or be resumed."""
    for number, resume in enumerate((False, True)):
        out = tmp_path / f"early-{number}"
        out.mkdir()
        (out / ".lock").touch()
        file = experiment_file(**QUICK)
        (out / "run.json").write_text('{"nni": [], "seconds": 0, "settings": {"seed": 9}}')
        run_experiment(file, out=str(out), resume=resume, html=False, report=lambda line: None)
        assert read_json(out / "run.json")["settings"]["seed"] == 0
    with pytest.raises(UserError, match="nothing to resume"):
        run_experiment(file, out="nowhere", resume=True)


def test_nnictl_refuses_an_edited_config(experiment_file: Write) -> None:
    """What NNI's tuner process does, in a process of its own, for it ends it."""
    file = experiment_file(**{**QUICK, "nni": {"trials": 3}})
    assert main(["nni-config", file, "--out", "run"]) == 0
    edit(Path("run/config.yaml"), seed=7, nni={"port": 9000})
    tuner = (
        "import sys, time; from nni_robust.experiments.nnictl import ExperimentTuner; "
        "ExperimentTuner(sys.argv[1]).update_search_space({}); time.sleep(300)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", tuner, "run"],
        env={**os.environ, "NNI_TUNER_COMMAND_CHANNEL": "ws://127.0.0.1:1/tuner"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "seed: 0 there, 7 now" in ended.stderr
    assert "nni." not in ended.stderr.partition("Only")[0].replace("nni_robust", "")
    assert not Path("run/candidates.jsonl").exists()
