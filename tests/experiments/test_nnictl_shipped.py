"""Every experiment that comes with the package also starts by ``nnictl create --config``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from nni.experiment.config import ExperimentConfig

from nni_robust.cli import main
from nni_robust.experiments import load_experiment, shipped

#: What to set where the sentence says that data, weights or a GPU are not there.
_INSTEAD = {
    "data set 'cifar10': a folder": ["task.dataset=blank"],
    "final.train.batch_size: 400 is not": ["final.train.batch_size=64"],  # than all of blank
    "no table ": ["evaluator.table=synthetic:wrn"],
    "nni.trial_gpus: 1 is more than": ["nni.trial_gpus=0"],
    "wrn-34-10.safetensors": ["task.teacher.weights=null", "task.teacher.train={epochs: 1}"],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNI_ROBUST_DATA", raising=False)


@pytest.mark.parametrize("name", shipped())
def test_nni_accepts_the_configuration(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: list[str] = []
    for _ in range(1 + len(_INSTEAD)):
        arguments = [word for change in changes for word in ("--set", change)]
        if main(["nni-config", name, "--out", "run", *arguments]) == 0:
            break
        sentence = capsys.readouterr().err
        known = [what for key, what in _INSTEAD.items() if key in sentence]
        assert len(known) == 1, sentence
        assert not set(known[0]) & set(changes), sentence
        changes += known[0]
    run = tmp_path / "run"
    config = ExperimentConfig.load(run / "nnictl.yml")
    config.validate()  # NNI's own, of every section
    settings = load_experiment(str(run / "config.yaml"))
    assert config.experiment_name == settings.name == name
    assert config.trial_concurrency == settings.nni.concurrency
    assert settings.nni.engine == "ts"
    module, _, tuner = config.tuner.class_name.rpartition(".")
    getattr(import_module(module), tuner)(**config.tuner.class_args)
    assert config.tuner.class_args == {"run": str(run)}


def test_the_tuner_by_its_registered_name(tmp_path: Path) -> None:
    assert main(["nni-config", "quickstart", "--out", "run", "--registered"]) == 0
    config = ExperimentConfig.load(tmp_path / "run" / "nnictl.yml")
    config.validate()
    assert config.tuner.name == yaml.safe_load(Path("run/algo.yml").read_text())["builtinName"]
    assert config.tuner.class_name is None


def test_nni_would_refuse_a_mistake(tmp_path: Path) -> None:
    """What the other tests of this file rely on."""
    assert main(["nni-config", "quickstart", "--out", "run"]) == 0
    written = yaml.safe_load((tmp_path / "run" / "nnictl.yml").read_text())
    ExperimentConfig(**written).validate()
    for wrong in ({"trialComand": "x"}, {"trialConcurrency": 0}, {"tuner": None}):
        # Not from a file: NNI's `load` of a bad one leaves its folder as the base of all paths.
        with pytest.raises((AttributeError, AssertionError, ValueError)):
            ExperimentConfig(**{**written, **wrong}).validate()
