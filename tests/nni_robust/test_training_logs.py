"""Curves in files, TensorBoard and MLflow, read back by csv, TensorBoard's and MLflow's readers."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.loggers import CSVLogger, Logger
from torch import nn

from nni_robust.cli import main
from nni_robust.data import DataSplits, ImageSet
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import (
    EpochRecord,
    Recipe,
    TrainAttack,
    TrainingLog,
    open_logs,
    read_curve,
    train,
)
from nni_robust.training.logs import write_logs

THREAT = ThreatModel(eps=0.1)
NAMES = ("loss", "lr", "train_robust", "val_clean", "val_robust", "seconds")


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (80, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(80) % 4, "abcd", ("crop", "flip"))
    return DataSplits("toy", images.take(torch.arange(64)), images.take(torch.arange(64, 80)))


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 16,
        "attack": TrainAttack(steps=1),
        "validation_attack": "pgd2",
        "accelerator": "cpu",
    }
    return Recipe(**{**settings, **changes})


def stop_after(number: int) -> Any:
    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == number:
            raise KeyboardInterrupt

    return on_epoch


def in_files(folder: Path) -> list[dict[str, Any]]:
    """The curve of both files, which must tell the same."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    with open(folder / "log.csv", newline="") as f:
        table = list(csv.DictReader(f))
    assert len(lines) == len(table)
    for line, row in zip(lines, table, strict=True):
        assert list(line) == list(row) == ["epoch", *NAMES]
        for name, value in line.items():
            assert (row[name] == "") if value is None else (float(row[name]) == value)
    return lines


def in_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {n: [(e.step, e.value) for e in reader.Scalars(n)] for n in reader.Tags()["scalars"]}


def same(found: dict[str, list[tuple[int, float]]], history: list[EpochRecord]) -> bool:
    """Every measured number of every epoch once, as floats of 32 bits, and nothing else."""
    wanted = {
        name: [
            (r.epoch, pytest.approx(getattr(r, name), rel=1e-6))
            for r in history
            if getattr(r, name) is not None
        ]
        for name in NAMES
    }
    return found == {name: points for name, points in wanted.items() if points}


@pytest.mark.parametrize("changes", [{}, {"validation_attack": None}])
def test_files_hold_each_epoch_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = recipe(**changes)
    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), settings, THREAT, folder=tmp_path, on_epoch=stop_after(2))
    assert [line["epoch"] for line in in_files(tmp_path)] == [1, 2]
    result = train(network(), splits(), settings, THREAT, folder=tmp_path)
    assert [EpochRecord(**line) for line in in_files(tmp_path)] == result.history
    assert read_curve(tmp_path) == result.history
    assert [r.epoch for r in result.history] == [1, 2, 3, 4]


def test_what_a_kill_took_from_the_files_is_made_up_for(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), recipe(), THREAT, folder=tmp_path, on_epoch=stop_after(3))
    # As if the kill had come after the checkpoint, or in the middle of a line.
    (tmp_path / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text()[:-20])
    (tmp_path / "log.csv").unlink()
    train(network(), splits(), recipe(), THREAT, folder=tmp_path)
    assert [line["epoch"] for line in in_files(tmp_path)] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_takes_its_line_along(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), recipe(), THREAT, folder=tmp_path, on_epoch=stop_after(3))
    newest = max(tmp_path.glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    lines = []
    with pytest.warns(UserWarning, match="checkpoint not used"), pytest.raises(KeyboardInterrupt):
        train(
            network(),
            splits(),
            recipe(),
            THREAT,
            folder=tmp_path,
            hook=Interrupt(lambda: lines.extend(in_files(tmp_path))),
        )
    assert [line["epoch"] for line in lines] == [1, 2]


class Interrupt:
    """Looks at something before the first batch, and stops."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        self.look()
        raise KeyboardInterrupt


def test_a_damaged_curve_of_a_finished_training_is_told(tmp_path: Path) -> None:
    train(network(), splits(), recipe(epochs=2), THREAT, folder=tmp_path)
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(UserError, match=r"log\.jsonl' is damaged"):
        train(network(), splits(), recipe(epochs=2), THREAT, folder=tmp_path)


def test_tensorboard_holds_each_epoch_once(tmp_path: Path) -> None:
    def run(stop: int) -> Any:
        return train(
            network(),
            splits(),
            recipe(),
            THREAT,
            folder=tmp_path,
            on_epoch=stop_after(stop),
            logs=open_logs(["tensorboard"], tmp_path),
        )

    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run(stop)
    result = run(0)
    found = in_tensorboard(tmp_path / "tensorboard")
    assert same(found, result.history)
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4]


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_training_logs import THREAT, network, recipe, splits
from nni_robust.training import open_logs, train
train(network(), splits(), recipe(epochs=30), THREAT, folder=sys.argv[1],
      on_epoch=lambda r: print(r.epoch, flush=True), logs=open_logs(["tensorboard"], sys.argv[1]))
"""


def test_a_killed_training_goes_on_in_all_logs(tmp_path: Path) -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    for epoch in (2, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= epoch:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    result = train(
        network(),
        splits(),
        recipe(epochs=30),
        THREAT,
        folder=tmp_path,
        logs=open_logs(["tensorboard"], tmp_path),
    )
    assert len(result.history) == 30
    assert [EpochRecord(**line) for line in in_files(tmp_path)] == result.history
    assert same(in_tensorboard(tmp_path / "tensorboard"), result.history)


def test_two_devices_write_one_curve(tmp_path: Path) -> None:
    result = train(
        network(),
        splits(),
        recipe(devices=2, strategy="ddp_fork"),
        THREAT,
        folder=tmp_path,
        logs=open_logs(["tensorboard"], tmp_path),
    )
    assert [EpochRecord(**line) for line in in_files(tmp_path)] == result.history
    assert same(in_tensorboard(tmp_path / "tensorboard"), result.history)


@pytest.mark.parametrize(
    ("output", "looks"),
    [
        # What local trials have, and what the web UI opens; other training services.
        ("environments/local-env/trials/abcde", "trials/abcde/output/tensorboard"),
        ("somewhere/trials/abcde", "somewhere/trials/abcde/tensorboard"),
    ],
)
def test_a_trial_writes_where_nni_looks(
    output: str, looks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / output))
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "abcde")
    result = train(
        network(),
        splits(),
        recipe(epochs=2),
        THREAT,
        folder=tmp_path / "store",
        logs=open_logs(["tensorboard"], tmp_path / "store"),
    )
    assert same(in_tensorboard(tmp_path / looks), result.history)
    assert not (tmp_path / "store/tensorboard").exists()


def test_a_logger_of_lightning(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), name="mine", version="1")
    result = train(network(), splits(), recipe(epochs=2), THREAT, logs=[logger])
    with open(tmp_path / "mine/1/metrics.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["step"]) for row in rows] == [1, 2]
    assert [float(row["loss"]) for row in rows] == [r.loss for r in result.history]


class Broken(Logger):
    """Fails at first; remembers what it is told afterwards."""

    def __init__(self, failures: int) -> None:
        self.failures, self.told, self.settings = failures, list[int](), dict[str, Any]()
        self.status = ""

    @property
    def name(self) -> str:
        return "broken"

    @property
    def version(self) -> str:
        return "1"

    def log_hyperparams(self, params: Any) -> None:
        self.settings = dict(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("http://me:secret@host is down; password: abc")
        assert step is not None
        self.told.append(step)

    def finalize(self, status: str) -> None:
        self.status = status


def test_a_log_that_fails_is_tried_again_and_the_training_goes_on() -> None:
    logger = Broken(2)
    with pytest.warns(UserWarning, match="a log was not written: ConnectionError") as caught:
        result = train(network(), splits(), recipe(), THREAT, logs=[logger])
    assert len(result.history) == 4
    assert logger.told == [1, 2, 3, 4]
    assert logger.status == "success"
    assert logger.settings["recipe.lr"] == 0.1
    assert not any("abc" in str(w.message) for w in caught)
    failed = Broken(0)
    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), recipe(), THREAT, logs=[failed], on_epoch=stop_after(2))
    assert (failed.told, failed.status) == ([1, 2], "failed")


def test_secrets_of_the_settings_stay_out() -> None:
    logger = Broken(0)
    settings = {"wrap": {"password": "hunter2", "weight": 2, "names": ["a"]}, "teacher": None}
    write_logs([TrainingLog.of(logger)], settings, [EpochRecord(1, 1.0, 0.1, None, None, None, 1)])
    assert logger.settings == {
        "wrap.password": "***",
        "wrap.weight": 2,
        "wrap.names": "['a']",
        "teacher": "None",
    }


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "robnet-small", "--out", str(tmp_path / "run"), "--log", "tensorbord"]
    assert main(argv) == 2
    assert "--log: 'tensorbord' is not allowed; did you mean 'tensorboard'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_package_costs_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    missing = {"mlflow", "tensorboard"}
    monkeypatch.setattr(
        "nni_robust.training.logs.find_spec", lambda n: None if n in missing else real(n)
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in missing:
        with pytest.raises(
            UserError, match=rf"log: '{name}' needs .* pip install 'nni-robust\[{name}\]'"
        ):
            open_logs([name], ".")
    missing.clear()
    with pytest.raises(UserError, match="log: 'tensorboard' needs a folder"):
        open_logs(["tensorboard"], None)


@pytest.mark.slow
def test_mlflow_holds_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs the extra `mlflow`."""
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def run(stop: int) -> Any:
        return train(
            network(),
            splits(),
            recipe(),
            THREAT,
            folder=tmp_path / "run",
            on_epoch=stop_after(stop),
            logs=open_logs(["mlflow"], tmp_path / "run", shared=tmp_path, title="mine"),
        )

    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run(stop)
    result = run(0)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nni-robust")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert float(found.data.params["recipe.lr"]) == 0.1
    curve = {
        n: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, n)]
        for n in NAMES
    }
    assert same(curve, result.history)
    # The same folder, emptied: another training, another run.
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    run(0)
    assert len(client.search_runs([experiment.experiment_id])) == 2
