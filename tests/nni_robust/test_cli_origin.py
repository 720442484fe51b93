"""``evaluate`` and ``transfer`` take data set and threat from a network's training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_architecture import EMPTY_CODE, write_tiny

from nni_robust.cli import main

FOLDER = "image-folder:three"
Out = Callable[..., tuple[int, str, str]]


def picture_folder(root: Path) -> None:
    """Three classes of 8×8 pictures of different brightness."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for k in range(3):
            (root / split / f"class{k}").mkdir(parents=True)
            for i in range(10):
                pixels = draw.integers(80 * k, 80 * k + 80, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{k}" / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``three``: on three classes, L∞ 0.05; ``digits``: L∞ 0.1; ``round``: digits, L2 0.5."""
    root = tmp_path_factory.mktemp("trained")
    picture_folder(root / "three")
    write_tiny(root / "tiny.yaml", code=EMPTY_CODE)
    settings = ["epochs=1", "batch_size=16", "loss=clean", "validation_attack=null"]
    changes = [part for setting in settings for part in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for out, more in (
            ("runs/three", ["--dataset", FOLDER, "--eps", "0.05"]),
            ("runs/digits", ["--eps", "0.1"]),
            ("runs/round", ["--eps", "0.5", "--norm", "l2"]),
        ):
            assert main(["train", "tiny.yaml", "--out", out, *changes, *more]) == 0
        assert main(["export", "runs/three", "--to", "runs/exported"]) == 0
    return root


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Out:
    monkeypatch.chdir(trained)
    capsys.readouterr()

    def call(*argv: str) -> tuple[int, str, str]:
        code = main([*argv, "--limit", "9"] if argv[0] in ("evaluate", "transfer") else [*argv])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.mark.parametrize("arch", ["runs/three", "runs/three/architecture.yaml", "runs/exported"])
def test_evaluate_takes_both_from_the_training(arch: str, run: Out) -> None:
    code, out, err = run("evaluate", arch, "--attacks", "fgsm", "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0
    assert (found["dataset"], found["threat"]) == (FOLDER, {"norm": "linf", "eps": 0.05})
    assert list(found["metrics"]) == ["clean", "fgsm@0.05"]
    assert err == f"data set and threat from its training: {FOLDER}, linf 0.05\n"
    given = ["--dataset", FOLDER, "--eps", "0.05", "--norm", "linf"]
    code, out, err = run("evaluate", arch, "--attacks", "fgsm", "--json", *given)
    assert json.loads(out)["metrics"] == found["metrics"]
    assert (code, err) == (0, "")


def test_what_is_given_wins(run: Out) -> None:
    _, out, err = run("evaluate", "runs/digits", "--attacks", "fgsm", "--eps", "8/255")
    assert "test pictures of digits, linf 8/255" in out
    assert err == "data set from its training: digits\n"
    # A radius is taken over only with its norm.
    _, out, _ = run("evaluate", "runs/digits", "--attacks", "fgsm", "--norm", "l2")
    assert "test pictures of digits, l2 8/255" in out
    code, out, err = run("evaluate", "runs/three", "--dataset", "digits", "--attacks", "fgsm")
    note, *_, error = err.splitlines()
    assert note == f"note: 'runs/three' was trained on {FOLDER}; the pictures are digits"
    assert error == (
        "error: 'tiny' was trained for 3 classes, but 'digits' has 10: --dataset must fit"
    )
    assert (code, out) == (2, "")


def test_the_norm_of_the_training(run: Out) -> None:
    _, out, err = run("evaluate", "runs/round", "--attacks", "fgsm")
    assert "fgsm-l2@0.5" in out
    assert err == "data set and threat from its training: digits, l2 0.5\n"
    _, out, err = run("evaluate", "runs/round", "--attacks", "fgsm", "--strengths", "0.1,0.2")
    assert "test pictures of digits, l2;" in out
    assert err == "data set and norm from its training: digits, l2\n"
    _, out, err = run("evaluate", "runs/three", "--corruptions", "fog", "--severities", "1")
    assert f"test pictures of {FOLDER}, corruptions" in out
    assert err == f"data set from its training: {FOLDER}\n"


def test_what_is_not_known_is_said(run: Out, trained: Path) -> None:
    _, out, err = run("evaluate", "tiny.yaml", "--attacks", "fgsm")
    assert "of digits, linf 8/255" in out
    assert err.startswith("untrained weights: 'tiny'")
    weights = ["--weights", "runs/digits/weights.safetensors"]
    _, out, err = run("evaluate", "runs/three", "--attacks", "fgsm", *weights)
    assert "of digits, linf 8/255" in out
    assert err == "data set: digits (the default; a file of weights does not tell its own)\n"
    shutil.copytree(trained / "runs/three", trained / "runs/damaged", dirs_exist_ok=True)
    (trained / "runs/damaged/result.json").write_text("{")
    code, _, err = run("evaluate", "runs/damaged", "--attacks", "fgsm")
    assert code == 2
    assert err.startswith("what 'runs/damaged' was trained on cannot be read: ")


def test_transfer_between_networks(run: Out) -> None:
    attack = ("--attack", "fgsm")
    code, out, err = run("transfer", "runs/three", "runs/exported", *attack)
    assert (code, out.splitlines()[0].split(";")[0]) == (
        0,
        f"fgsm@0.05, 9 test pictures of {FOLDER}",
    )
    assert err == f"data set and threat from their training: {FOLDER}, linf 0.05\n"
    code, out, err = run("transfer", "runs/three", "runs/digits", *attack)
    assert (code, out) == (2, "")
    assert err == (
        f"error: 'runs/three' was trained on {FOLDER}, 'runs/digits' was trained on digits; "
        "--dataset says what to use for all\n"
    )
    code, _, err = run("transfer", "runs/digits", "--sources", "runs/round", *attack)
    assert code == 2
    assert err.endswith("'runs/round' was trained in l2; --norm says what to use for all\n")
    code, out, _ = run(
        "transfer", "runs/digits", "--sources", "runs/round", *attack, "--norm", "l2"
    )
    assert (code, out.split(",")[0]) == (0, "fgsm-l2@0.5")
    code, out, err = run("transfer", "runs/digits", "--sources", "tiny.yaml", *attack)
    assert (code, out.split(",")[0]) == (0, "fgsm@0.1")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--corruptions", "fog", "--attacks", "fgsm"], "--attacks 'fgsm' is not allowed with --c"),
        (["--corruptions", "fog", "--eps", ".3"], "--eps '.3' is not allowed with --corruptions"),
        (["--corruptions", "fog", "--norm", "l2"], "--norm 'l2' is not allowed with --corruptions"),
        (["--examples-from", "adv", "--attacks", "fgsm"], "--attacks 'fgsm' is not allowed with"),
        (["--examples-from", "adv"], "--limit '9' is not allowed with --examples-from, which att"),
        (["--folder", "runs/digits"], "--folder 'runs/digits' holds something else ('architectu"),
        (
            ["--folder", "runs/digits", "--strengths", ".1"],
            "--folder 'runs/digits' holds something",
        ),
        (["--folder", "three"], "--folder 'three' holds something else ('test'); give an empty"),
    ],
)
def test_refusals(argv: list[str], says: str, run: Out, trained: Path) -> None:
    before = sorted(trained.rglob("*"))
    code, out, err = run("evaluate", "runs/digits", *argv)
    assert (code, out) == (2, "")
    assert says in err
    assert sorted(trained.rglob("*")) == before


def test_a_folder_of_evaluations_takes_more(run: Out, trained: Path) -> None:
    common = ("evaluate", "runs/digits", "--folder", "kept", "--attacks", "fgsm")
    for more in (["--strengths", "0.1"], ["--strengths", "0.1"], [], []):
        assert run(*common, *more)[0] == 0
    kept = trained / "kept"
    for damaged in ("{", "[]"):  # told and written again, as ever
        (kept / "evaluation.json").write_text(damaged)
        code, _, err = run(*common)
        assert code == 0
        assert "set aside as 'evaluation.json.damaged" in err
    (kept / "other.txt").touch()
    assert run(*common)[0] == 0  # it is an evaluation's all the same


@pytest.mark.parametrize("name", ["junk.pth", "empty.pt"])
def test_a_file_that_is_none_of_weights(name: str, run: Out, trained: Path) -> None:
    (trained / name).write_text("hello" if name == "junk.pth" else "")
    code, _, err = run("evaluate", "tiny.yaml", "--weights", name)
    size = 5 if name == "junk.pth" else 0
    assert code == 2
    assert err.endswith(
        f"error: '{name}' is damaged: it is no file of weights that torch.save wrote "
        f"({size} bytes)\n"
    )
