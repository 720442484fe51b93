"""``evaluate --strengths``: its figures are those of the library, its refusals come first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_architecture import EMPTY_CODE, write_tiny

from nni_robust import load_architecture
from nni_robust.cli import main
from nni_robust.data import load_dataset
from nni_robust.spectrum import evaluate_spectrum


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "a.yaml")
    write_tiny(tmp_path / "b.yaml", code=EMPTY_CODE)
    return "a.yaml", "b.yaml"


def test_json_is_the_library(
    networks: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--strengths", "0.25, 0.03,0.17,0.1", "--attacks", "fgsm,pgd3", "--limit", "40"]
    assert main(["evaluate", *networks, *argv, "--seed", "2", "--json", "--plot", "f.svg"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "untrained weights: a.yaml, b.yaml" in captured.err
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")
    assert (found["pictures"], found["norm"], found["split"]) == (40, "linf", "test")
    images = load_dataset("digits", test=True).test
    for name in networks:
        torch.manual_seed(2)
        network = load_architecture(name).build(10)
        for attack in ("fgsm", "pgd3"):
            one = evaluate_spectrum(
                network, images, (0.03, 0.1, 0.17, 0.25), attack, limit=40, seed=2
            )
            shown = found["networks"][name][attack]
            assert shown["clean"] == one.clean
            assert shown["accuracy"] == {f"{eps:g}": a for eps, a in one.accuracy.items()}
            assert shown["auc"] == one.auc
            assert shown["avg_robust_acc@{0.03,0.1,0.17,0.25}"] == one.mean()
            assert shown["average"] == pytest.approx(one.mean())
            assert shown["passes"] == one.passes


def test_a_folder_keeps_what_was_attacked(
    networks: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--strengths", "0.03,0.1", "--attacks", "fgsm,pgd3", "--limit", "40", "--json"]
    folder = tmp_path / "kept"
    told = []
    for more in ([], ["--folder", str(folder)], ["--folder", str(folder)]):
        assert main(["evaluate", *networks, *argv, *more]) == 0
        found = json.loads(capsys.readouterr().out)["networks"]
        for one in (one for network in found.values() for one in network.values()):
            del one["seconds"], one["reliability"]["seconds"]
        told.append(found)
        files = sorted(folder.rglob("attack-*.safetensors"))
        times = [path.stat().st_mtime_ns for path in files]
        told.append({"files": files, "times": times})
    assert told[0] == told[2] == told[4]
    assert told[3] == told[5]
    assert len(told[3]["files"]) == 8  # two networks, attacks, strengths
    argv[1] = "0.03,0.2"
    assert main(["evaluate", *networks, *argv, "--folder", str(folder)]) == 2
    assert "spectrum of fgsm with other settings" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["evaluate", "missing.yaml", *argv, "--folder", "file"]) == 2
    assert "--folder 'file' cannot be written" in capsys.readouterr().err


def test_table(networks: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--strengths", "4/255,0.1", "--attacks", "fgsm", "--limit", "20", "--norm", "l2"]
    assert main(["evaluate", networks[0], *argv]) == 0
    title, header, row, *_ = capsys.readouterr().out.splitlines()
    assert title == "20 test pictures of digits, l2; accuracy at each eps"
    assert header.split() == [
        "network", "attack", "clean", "4/255", "0.1", "average", "area", "seconds",
    ]  # fmt: skip
    assert row.split()[:2] == [networks[0], "fgsm"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--strengths", "0.1", "--eps", "0.1"], "--eps and --strengths"),
        (["--strengths", ","], "--strengths ','"),
        (["--strengths", "0.1,much"], "threat.eps: 'much'"),
        (["--strengths", "0.1,2"], "threat.eps: 2"),
        (["--strengths", "0.1", "--attacks", ""], "at least one attack"),
        (["--strengths", "0.1", "--attacks", "pdg3"], "did you mean 'pgd'?"),
        (["--strengths", "0.1", "--attacks", "fgsm,fgsm"], "names one twice"),
        (["--strengths", "0.1", "--plot", "f.gif"], "must end in .svg, .png, .pdf"),
        (["--strengths", "0.1", "--plot", "no/f.svg"], "its folder does not exist"),
        (["a.yaml", "--strengths", "0.1"], "a.yaml, a.yaml names one twice"),
        (["b.yaml", "--strengths", "0.1", "--weights", "w.pt"], "--weights fits one"),
        (["b.yaml"], "a.yaml, b.yaml needs --strengths"),
        (["--plot", "f.svg"], "--plot 'f.svg' needs --strengths"),
    ],
)
def test_refusals(
    argv: list[str], message: str, networks: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", networks[0], *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
