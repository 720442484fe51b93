"""``convert``: from a checkpoint in the authors' layout to ``evaluate``."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch

from nni_robust import load_architecture
from nni_robust.cli import main


def checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch, outputs: int = 10) -> torch.nn.Module:
    """Write what main.py of gmh14/RobNets saves, with a class that is not there any more."""

    class CosineLRScheduler:
        __module__, __qualname__ = "lr_scheduler", "CosineLRScheduler"

    module = types.ModuleType("lr_scheduler")
    vars(module)["CosineLRScheduler"] = CosineLRScheduler
    torch.manual_seed(1)
    network = load_architecture("tiny.yaml").build(outputs)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lr_scheduler", module)
        state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
        torch.save({"epoch": 1, "state_dict": state, "scheduler": CosineLRScheduler()}, path)
    return network


@pytest.fixture
def folder(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONVERT = ["convert", "old.pth.tar", "--arch", "tiny.yaml", "-o", "new/tiny.yaml"]


def test_what_convert_writes_evaluate_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = checkpoint(folder / "old.pth.tar", monkeypatch)
    assert main(CONVERT) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "wrote new/tiny.yaml and new/tiny.safetensors",
        "left out, not read: lr_scheduler.CosineLRScheduler",
    ]
    converted = load_architecture("new/tiny.yaml").build().eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(converted(x), network.eval()(x))
    assert main(["evaluate", "new/tiny.yaml", "--attacks", "fgsm", "--limit", "4"]) == 0
    assert "untrained" not in "".join(capsys.readouterr())


def test_more_outputs_than_classes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(folder / "old.pth.tar", monkeypatch, outputs=100)
    assert main(CONVERT) == 2
    assert "classifier of 100 outputs" in capsys.readouterr().err
    assert main([*CONVERT, "--first-classes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "architecture": "new/tiny.yaml",
        "weights": "new/tiny.safetensors",
        "name": "tiny",
        "num_classes": 10,
        "outputs": 100,
        "left_out": ["lr_scheduler.CosineLRScheduler"],
    }
    assert main([*CONVERT, "--num-classes", "100"]) == 0
    assert load_architecture("new/tiny.yaml").num_classes == 100


def test_wrong_files_cost_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(CONVERT) == 2
    assert capsys.readouterr().err == "error: no checkpoint 'old.pth.tar'\n"
    (folder / "old.pth.tar").write_text("<html>404</html>")
    assert main(CONVERT) == 2
    assert "no checkpoint that can be read safely" in capsys.readouterr().err


def test_evaluate_points_to_convert(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(folder / "old.pth", monkeypatch)
    assert main(["evaluate", "tiny.yaml", "--weights", "old.pth", "--limit", "4"]) == 2
    said = capsys.readouterr().err
    assert "`nni-robust convert`" in said
    assert "weights_only" not in said
