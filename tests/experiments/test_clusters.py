"""The recipes of docs/clusters.md: each passes our checks and NNI's own schema."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nni.experiment.config import ExperimentConfig

from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.experiments import load_experiment, run_experiment
from nni_robust.store import read_json, read_records

Write = Callable[..., str]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clusters.md"
RECIPES = [
    yaml.safe_load(block)
    for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
]
PLATFORMS = [recipe["nni"]["training_service"]["platform"] for recipe in RECIPES]


@pytest.fixture
def recipe_file(
    experiment_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], str]:
    """The tiny experiment with the sections of a recipe, on a machine with eight GPUs and a key."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    key = tmp_path / "home" / ".ssh" / "id_rsa"
    key.parent.mkdir()
    key.write_text("a key")
    return lambda recipe: experiment_file(**recipe)


def test_every_kind_of_place_is_there() -> None:
    assert set(PLATFORMS) == {"local", "remote", "kubeflow", "frameworkcontroller"}
    assert any(recipe.get("evaluator", {}).get("train", {}).get("devices") for recipe in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r["nni"]["training_service"]["platform"])
def test_a_recipe_passes_nnis_schema(
    recipe: dict[str, Any], recipe_file: Callable[[dict[str, Any]], str]
) -> None:
    assert main(["nni-config", recipe_file(recipe), "--out", "run"]) == 0
    config = yaml.safe_load(Path("run/nnictl.yml").read_text())
    canonical = ExperimentConfig(**config).canonical_copy()
    assert canonical.training_service.platform == recipe["nni"]["training_service"]["platform"]
    assert canonical.trial_gpu_number == recipe["nni"].get("trial_gpus", 0)
    # The folder that is uploaded holds no code, whatever the current folder is.
    uploaded = Path(config["trialCodeDirectory"])
    assert uploaded == Path.cwd() / "run" / "trial_code"
    assert not [p for p in uploaded.rglob("*") if not p.name.startswith(".nni-robust-")]


@pytest.mark.parametrize(
    "recipe",
    [r for r, platform in zip(RECIPES, PLATFORMS, strict=True) if platform in ("local", "remote")],
    ids=lambda r: r["nni"]["training_service"]["platform"],
)
def test_run_gives_nni_the_same_service(
    recipe: dict[str, Any], recipe_file: Callable[[dict[str, Any]], str], tmp_path: Path
) -> None:
    from nni_robust.experiments.runner import _nni_config

    config = _nni_config(load_experiment(recipe_file(recipe)), tmp_path, 3).canonical_copy()
    assert config.training_service.platform == recipe["nni"]["training_service"]["platform"]
    assert config.nni_manager_ip == recipe["nni"].get("manager_ip")


@pytest.mark.parametrize(
    "recipe",
    [r for r, p in zip(RECIPES, PLATFORMS, strict=True) if p not in ("local", "remote")],
    ids=lambda r: r["nni"]["training_service"]["platform"],
)
def test_on_a_cluster_roles_run_the_trial(
    recipe: dict[str, Any],
    recipe_file: Callable[[dict[str, Any]], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = recipe_file(recipe)
    with pytest.raises(UserError, match=r"not allowed with 'nni-robust run'.*nnictl create"):
        run_experiment(file, out="no")
    assert not Path("no").exists()
    main(["nni-config", file, "--out", "run"])
    service = yaml.safe_load(Path("run/nnictl.yml").read_text())["trainingService"]
    roles = service.get("taskRoles") or [service["worker"], service["master"]]
    for role in roles:
        assert "python3 -m nni_robust.nni_adapter.job" in role["command"]
        assert "NNI_ROBUST_STORE=http://10.0.0.5:8082" in role["command"]
        assert "NNI_TRIAL_COMMAND_CHANNEL" not in role["command"]  # NNI gives each its own there


@pytest.mark.parametrize(
    ("nni", "sentence"),
    [
        ({"training_service": {"platform": "remot"}}, "nni.training_service"),
        ({"store_port": 0}, "nni.store_port: 0 is not allowed"),
        ({"store": "ftp"}, "nni.store"),
        (
            {
                "training_service": {
                    "platform": "remote",
                    "machineList": [
                        {"host": "10.0.0.1", "user": "me", "pythonPath": "/a/bin"},
                        {"host": "10.0.0.2", "user": "me", "pythonPath": "/b/bin"},
                    ],
                }
            },
            "nni.trial_python is missing",
        ),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    recipe_file: Callable[[dict[str, Any]], str],
    capsys: pytest.CaptureFixture[str],
    nni: dict[str, Any],
    sentence: str,
) -> None:
    assert main(["nni-config", recipe_file({"nni": nni}), "--out", "run"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_trains_on_two_devices(experiment_file: Write, tmp_path: Path) -> None:
    train = {"epochs": 1, "batch_size": 64, "attack": {"steps": 1}, "validation_attack": None}
    devices = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"}
    run = run_experiment(
        experiment_file(
            evaluator={
                "name": "adversarial-training",
                "train": {**train, **devices},
                "attacks": ["fgsm"],
            },
            strategy={"name": "random"},
            final=None,
            nni={"trials": 2, "port": 18473},
        ),
        out=str(tmp_path / "run"),
        report=lambda line: None,
    )
    records = read_records(run / "candidates.jsonl")
    assert [r["status"] for r in records] == ["ok", "ok"]
    assert all(len(r["history"]) == 1 for r in records)
    assert read_json(run / "run.json")["status"] == "finished"
    # The curve came from a process that the trial started.
    (database,) = (p for p in run.glob("nni/*/db/nni.sqlite") if not p.parents[1].is_symlink())
    with contextlib.closing(sqlite3.connect(database)) as connection:
        curve = connection.execute(
            "select count(*) from MetricData where type = 'PERIODICAL'"
        ).fetchone()
    assert curve == (2,)
