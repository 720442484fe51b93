"""``train``: what it leaves behind, and how it goes on after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_architecture import EMPTY_CODE, write_tiny

from nni_robust import load_architecture
from nni_robust.cli import main

RECIPE = """
epochs: 2
batch_size: 512
lr: 0.05
validation_limit: 32
validation_attack: fgsm
attack: {steps: 2}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    note = "Only the preprocessing is left."
    provenance = {"kind": "found", "source": "written by hand", "note": note}
    write_tiny(tmp_path / "tiny.yaml", code=EMPTY_CODE, num_classes=7, provenance=provenance)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


TRAIN = ["train", "tiny.yaml", "--out", "run", "--recipe", "recipe.yaml", "--eps", "0.1"]


def test_a_killed_evaluation_goes_on(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two attacks is stopped; the first is not made again."""
    from nni_robust.attacks.gradient import PGD

    argv = [*TRAIN, "--evaluate", "--attacks", "pgd7,pgd9", "--limit", "64", "--json"]
    attacked = []
    plain = PGD.__call__

    def stopped(self: PGD, *args: Any, **more: Any) -> Any:
        if self.label in ("pgd7", "pgd9"):
            attacked.append(self.label)
            if attacked == ["pgd7", "pgd9"]:
                raise KeyboardInterrupt
        return plain(self, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(PGD, "__call__", stopped)
        assert main(argv) == 130
        assert (files / "run/evaluation").is_dir()
        assert main([*argv, "--resume"]) == 0
    assert attacked == ["pgd7", "pgd9", "pgd9"]
    assert not (files / "run/evaluation").exists()
    outcome = json.loads(capsys.readouterr().out.strip())
    argv = ["evaluate", "run/architecture.yaml", "--eps", "0.1", "--attacks", "pgd7,pgd9"]
    assert main([*argv, "--limit", "64", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == outcome["test"]["metrics"]


def test_train_leaves_an_architecture_that_evaluate_takes(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = ["--attacks", "fgsm", "--limit", "64"]
    assert main([*TRAIN, "--set", "attack.steps=1", "--evaluate", "--json", *test]) == 0
    captured = capsys.readouterr()
    outcome: dict[str, Any] = json.loads(captured.out)
    assert [record["epoch"] for record in outcome["history"]] == [1, 2]
    assert "epoch 2/2  loss " in captured.err
    lines = (files / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == outcome["history"]

    trained = load_architecture(files / "run/architecture.yaml")
    assert trained.trained
    assert (trained.num_classes, trained.input_shape) == (10, (3, 8, 8))
    assert trained.provenance["note"].startswith(
        "Only the preprocessing is left. Weights: 2 epochs"
    )
    recipe = json.loads((files / "run/result.json").read_text())["training"]["recipe"]
    assert (recipe["attack"]["steps"], recipe["batch_size"]) == (1, 512)

    (files / "run").rename(files / "moved")  # the file names its weights relative to itself
    argv = ["evaluate", "moved/architecture.yaml", "--eps", "0.1", "--json", *test]
    assert main(argv) == 0
    captured = capsys.readouterr()
    again = json.loads(captured.out)
    assert again["metrics"] == outcome["test"]["metrics"]
    assert captured.err == "data set from its training: digits\n"

    # The figures stay with the weights, with their flags, for show and export.
    kept = json.loads((files / "moved/evaluation.json").read_text())
    about = ("architecture", "trained", "dataset", "split", "pictures", "threat", "metrics")
    assert [kept[key] for key in about] == [again[key] for key in about]
    assert kept["reliability"] == outcome["test"]["reliability"]
    assert kept["reliability"]["checks"]["training-collapse"]["status"] != "not run"
    assert main(["show", "moved/architecture.yaml", "--json"]) == 0
    of_file = json.loads(capsys.readouterr().out)
    assert of_file["evaluation"] == kept
    assert main(["show", "moved", "--json"]) == 0  # the folder is as good as the file
    assert json.loads(capsys.readouterr().out) == of_file
    assert main(["export", "moved", "--to", "out"]) == 0
    capsys.readouterr()
    (figures,) = json.loads((files / "out/results.json").read_text())["evaluations"]
    assert (figures["metrics"], figures["flags"]) == (
        kept["metrics"],
        kept["reliability"]["unreliable"],
    )
    kept["reliability"]["unreliable"] = ["randomised: it is"]
    (files / "moved/evaluation.json").write_text(json.dumps(kept))
    assert main(["show", "moved/architecture.yaml"]) == 0
    shown = capsys.readouterr().out
    assert f"fgsm@0.1 {kept['metrics']['fgsm@0.1']:.2%}" in shown
    assert any(
        line.split() == ["UNRELIABLE", "randomised:", "it", "is"] for line in shown.split("\n")
    )
    (files / "moved/evaluation.json").write_text(json.dumps({**kept, "architecture": "other"}))
    assert main(["show", "moved/architecture.yaml", "--json"]) == 0
    assert "evaluation" not in json.loads(capsys.readouterr().out)


def test_resume_needs_to_be_asked_for(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = [*TRAIN, "--set", "epochs=1"]
    assert main([*short, "--resume"]) == 2
    assert "nothing to resume: 'run'" in capsys.readouterr().err
    assert main(short) == 0
    before = (files / "run/weights.safetensors").read_bytes()
    capsys.readouterr()
    assert main(short) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*short, "--resume"]) == 0  # finished already: nothing is done again
    assert "epoch" not in capsys.readouterr().out
    assert (files / "run/weights.safetensors").read_bytes() == before
    assert main([*short, "--resume", "--seed", "1"]) == 2
    assert "seed was 0, now it is 1" in capsys.readouterr().err


def test_ctrl_c_and_resume(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*TRAIN, "--set", "epochs=80", "--set", "validation_attack=null"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nni_robust", *argv],
        cwd=files,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("epoch  1/80")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == (
        "interrupted; continue with: nni-robust train tiny.yaml --out run --recipe recipe.yaml "
        "--eps 0.1 --set epochs=80 --set validation_attack=null --resume"
    )
    done = 1 + sum(line.startswith("epoch") for line in out.splitlines())
    assert main([*argv, "--resume"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    numbers = [int(line.split("/")[0].removeprefix("epoch")) for line in lines]
    # The checkpoint precedes the line, so an epoch may be done without having been printed.
    assert numbers in (list(range(done + 1, 81)), list(range(done + 2, 81)))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--set", "epoch=3"], "did you mean 'epochs'?"),
        (["--set", "epochs=zero"], "recipe.epochs: 'zero'"),
        (["--set", "batch_size=5000"], "batch_size: 5000"),
        (["--set", "attack.step=3"], "unknown key 'step' in recipe.attack"),
        (["--recipe", "missing.yaml"], "no file 'missing.yaml'"),
        (["--out", "tiny.yaml"], "--out 'tiny.yaml' cannot be written"),
        (["--out", "tiny.yaml/below"], "cannot be written"),
        (["--evaluate", "--attacks", "nonsense"], "unknown attack 'nonsense'"),
        (["--attacks", "fgsm"], "--attacks 'fgsm' needs --evaluate"),
        (["--limit", "5"], "--limit '5' needs --evaluate"),
        (["--batch-size", "5"], "--batch-size '5' needs --evaluate"),
        (["--set", "epochs=0"], "epochs: 0 is not allowed here"),
        (["--norm", "l1"], "threat.norm"),
    ],
)
def test_refusals(
    argv: list[str], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_divergence_stops_clearly(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--set", "lr=1e30", "--set", "schedule=constant"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: training diverged")
    assert "lower lr" in error


@pytest.mark.parametrize(
    ("recipe", "given", "threat"),
    [
        ("threat: {norm: linf, eps: 4/255}", [], ("linf", 4 / 255)),
        ("threat: {norm: l2, eps: 0.5}", [], ("l2", 0.5)),
        ("threat: {norm: l2, eps: 0.5}", ["--eps", "0.25"], ("l2", 0.25)),
        ("threat: {norm: l2, eps: 0.5}", ["--norm", "linf", "--eps", "0.1"], ("linf", 0.1)),
        ("", [], ("linf", 8 / 255)),
    ],
)
def test_the_threat_is_the_recipes_unless_it_is_given(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    given: list[str],
    threat: tuple[str, float],
) -> None:
    (files / "mine.yaml").write_text(f"epochs: 1\nbatch_size: 512\nloss: clean\n{recipe}\n")
    argv = ["train", "tiny.yaml", "--out", "run", "--recipe", "mine.yaml", "--json", *given]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)["threat"]
    assert (found["norm"], found["eps"]) == (threat[0], pytest.approx(threat[1]))


def test_a_recipe_by_its_name(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "tiny.yaml", "--out", "run", "--set", "epochs=1", "--set", "attack.steps=1"]
    argv += ["--set", "schedule=constant", "--set", "validation_attack=null"]
    assert main([*argv, "--recipe", "robnet-cifar1"]) == 2
    assert "did you mean 'robnet-cifar10'" in capsys.readouterr().err
    assert main([*argv, "--recipe", "robnet-cifar10"]) == 0
    training = json.loads((files / "run/result.json").read_text())["training"]
    assert training["threat"] == {"norm": "linf", "eps": pytest.approx(8 / 255)}
    assert (training["recipe"]["weight_decay"], training["recipe"]["epochs"]) == (1e-4, 1)


def test_a_teacher_may_teach(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--set", "epochs=1"]) == 0
    student = ["train", "tiny.yaml", "--recipe", "recipe.yaml", "--set", "loss=rslad"]
    capsys.readouterr()
    assert main([*student, "--out", "alone"]) == 2
    assert "teacher" in capsys.readouterr().err
    assert main([*student, "--out", "taught", "--teacher", "tiny.yaml"]) == 2
    assert "has no weights" in capsys.readouterr().err
    assert main([*student, "--out", "taught", "--teacher", "run/architecture.yaml"]) == 0
    assert main([*TRAIN[:-4], "--out", "x", "--teacher-weights", "w.safetensors"]) == 2
    assert "--teacher-weights is not allowed without --teacher" in capsys.readouterr().err
    taught = json.loads((files / "taught/result.json").read_text())["training"]
    assert taught["recipe"]["loss"] == "rslad"


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from nni_robust.training import list_recipes

    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list_recipes()
    (modern,) = [line.split() for line in lines if line.startswith("modern-cifar10")]
    assert modern == ["modern-cifar10", "madry", "100", "10", "0.9995", "best"]
    assert main(["recipes", "modern-cifar10"]) == 0
    text = capsys.readouterr().out
    about, settings = text.rsplit("\n\n", 1)
    assert "FastAT Benchmark" in about
    assert yaml.safe_load(settings)["label_smoothing"] == 0.4
    assert main(["recipes", "modern-cifar1O", "--json"]) == 2
    assert "did you mean 'modern-cifar10'" in capsys.readouterr().err


def test_the_best_epoch_is_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--set", "keep=best", "--log", "tensorboard"]) == 0
    said = capsys.readouterr().out
    kept = json.loads((files / "run/result.json").read_text())["kept_epoch"]
    assert f"kept epoch {kept}, the best by robust validation accuracy" in said
    assert list((files / "run/tensorboard").glob("events.out.tfevents.*"))
    assert main(["export", "run", "--to", "out"]) == 0
    assert f"kept epoch {kept}, the best" in (files / "out/README.md").read_text()
