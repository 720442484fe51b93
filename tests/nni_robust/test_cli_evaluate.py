"""``evaluate``: its figures are those of the network, its refusals come before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_robust import load_architecture
from nni_robust.cli import main
from nni_robust.data import load_dataset
from nni_robust.training import save_weights


def evaluated(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["evaluate", *argv, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def accuracy(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    network.eval()
    with torch.no_grad():
        return (network(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("split", ["test", "validation"])
def test_clean_accuracy_is_the_networks(
    split: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = evaluated(
        capsys, tiny, "--limit", "100", "--attacks", "fgsm", "--seed", "3", "--split", split
    )
    torch.manual_seed(3)
    network = load_architecture(tiny).build(10)
    data = load_dataset("digits", test=True)
    images = data.test if split == "test" else data.validation
    (batch,) = images.head(100).batches(100)
    assert answer["metrics"]["clean"] == accuracy(network, *batch)
    assert answer["metrics"].keys() == {"clean", "fgsm@8/255"}
    assert answer["pictures"] == 100
    assert answer["trained"] is False
    assert answer["threat"] == {"norm": "linf", "eps": 8 / 255}


def test_weights_from_a_file(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(11)
    network = load_architecture(tiny).build(10)
    save_weights(network, tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    answer = evaluated(capsys, tiny, "--limit", "64", "--attacks", "", "--weights", weights)
    (batch,) = load_dataset("digits", test=True).test.head(64).batches(64)
    assert answer["metrics"] == {"clean": accuracy(network, *batch)}
    assert answer["trained"] is True


def test_eps_0_is_clean(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (tiny, "--limit", "50", "--attacks", "fgsm, pgd2", "--eps", "0", "--norm", "l2")
    metrics = evaluated(capsys, *argv)["metrics"]
    assert len(metrics) == 3
    assert len(set(metrics.values())) == 1


def test_untrained_weights_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "evaluate",
        "robnet-small",
        "--dataset",
        "digits",
        "--attacks",
        "fgsm,pgd20",
        "--limit",
        "7",  # from 8 on it is told that such a network has one answer for all
    ]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "untrained weights" in captured.err
    lines = captured.out.splitlines()
    assert lines[0].startswith("robnet-small (untrained weights), 7 test pictures of digits")
    rows = ["clean", "fgsm@8/255", "pgd20@8/255", "all", "reliability:"]
    assert [line.split()[0] for line in lines[2:]] == rows


def test_unreliable_figures_say_so(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Huge logits: the cross entropy has no gradient in float32."""
    torch.manual_seed(0)
    network = load_architecture(tiny).build(10)
    with torch.no_grad():
        *_, last = (m for m in network.modules() if isinstance(m, torch.nn.Linear))
        last.weight *= 1e7
    save_weights(network, tmp_path / "w.safetensors")
    argv = [tiny, "--weights", str(tmp_path / "w.safetensors"), "--attacks", "pgd3"]
    flags = evaluated(capsys, *argv)["reliability"]
    assert flags["reliable"] is False
    (reason,) = flags["unreliable"]
    assert reason.startswith("zero-gradient: ")
    assert flags["checks"]["zero-gradient"]["figures"]["share"] > 0
    assert main(["evaluate", *argv]) == 0
    assert f"UNRELIABLE: {reason}" in capsys.readouterr().out.splitlines()
    for more in ([], ["--thorough"]):
        assert main(["evaluate", *argv, "--strengths", "0.01,0.02", *more]) == 0
        assert f"UNRELIABLE: {tiny}, pgd3: {reason}" in capsys.readouterr().out.splitlines()
    thorough = evaluated(capsys, *argv, "--thorough")["reliability"]["checks"]
    assert thorough["large-eps"]["status"] == "failed"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--eps", "2"], "threat.eps: 2"),
        (["--eps", "much"], "threat.eps: 'much'"),
        (["--norm", "l1"], "threat.norm: 'l1'"),
        (["--attacks", "pdg20"], "did you mean 'pgd'?"),
        (["--attacks", "fgsm,fgsm"], "two attacks"),
        (["--dataset", "digit"], "did you mean 'digits'?"),
        (["--dataset", "cifar10", "--root", "/no/such/folder"], "/no/such/folder"),
        (["--weights", "no.safetensors"], "no weights file 'no.safetensors'"),
        (["--device", "warp"], "--device 'warp'"),
    ],
)
def test_refusals(
    argv: list[str], message: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", tiny, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert captured.out == ""


def test_pictures_that_a_network_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "robnet-large-imagenet", "--limit", "2"]) == 2
    assert "'robnet-large-imagenet' does not take the pictures of 'digits' (3×8×8)" in (
        capsys.readouterr().err
    )


def test_precision(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "wrn-a", "--precision", "bf16", "--strengths", "0.1,0.2"]
    assert main(argv) == 2
    assert "--precision 'bf16' is not allowed with --strengths" in capsys.readouterr().err


# --- going on after a kill -----------------------------------------------------------------------


def test_a_folder_keeps_what_was_attacked(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [tiny, "--limit", "60", "--attacks", "fgsm,pgd3", "--eps", "0.05"]
    plain = evaluated(capsys, *argv)
    first = evaluated(capsys, *argv, "--batch-size", "32", "--folder", str(tmp_path / "kept"))
    files = sorted((tmp_path / "kept").rglob("attack-*.safetensors"))
    assert len(files) == 4  # two batches of each attack
    made = [path.stat().st_mtime_ns for path in files]
    again = evaluated(capsys, *argv, "--folder", str(tmp_path / "kept"))
    assert plain["metrics"] == first["metrics"] == again["metrics"]
    assert sorted((tmp_path / "kept").rglob("attack-*.safetensors")) == files
    assert [path.stat().st_mtime_ns for path in files] == made
    assert main(["evaluate", *argv[:-1], "0.06", "--folder", str(tmp_path / "kept")]) == 2
    assert "holds the evaluation of another threat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--examples-from", "x"], "--folder is not allowed with --examples-from"),
        (["--save-examples", "./here"], "give two folders"),
    ],
)
def test_a_folder_that_cannot_be_meant(
    more: list[str],
    told: str,
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", tiny, "--folder", "here", *more]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_told_before_the_network_is_looked_for(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "missing.yaml", "--folder", tiny]) == 2
    assert f"--folder '{tiny}' cannot be written: File exists" in capsys.readouterr().err
