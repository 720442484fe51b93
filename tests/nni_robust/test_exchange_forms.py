"""ONNX and torch.export: files that compute the same elsewhere, and refusals where they do not."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.cli import main
from nni_robust.data import load_dataset
from nni_robust.errors import UserError
from nni_robust.exchange import TOLERANCE, _forms

SHAPE = (3, 8, 8)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    ).eval()


class Off(nn.Module):
    """The same network with one logit shifted."""

    def __init__(self, inner: nn.Module, shift: float) -> None:
        super().__init__()
        self.inner, self.shift = inner, shift

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.zeros(10)
        shift[3] = self.shift
        logits: Tensor = self.inner(x) + shift
        return logits


def real_pictures() -> Tensor:
    pictures, _ = next(iter(load_dataset("digits").validation.batches(16)))
    return pictures


def test_onnx_computes_the_same_in_its_own_runtime(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'nni-robust[onnx]'")
    path, plain = tmp_path / "model.onnx", network()
    forward = _forms.write_onnx(plain, SHAPE, path)
    difference = _forms.compare(plain, forward, SHAPE, real_pictures())
    assert difference < 1e-4
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for pictures in (real_pictures(), torch.rand(1, *SHAPE), torch.rand(7, *SHAPE)):
        (found,) = session.run(None, {"pictures": pictures.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), plain(pictures).detach())
    assert str(Path(__file__).parent).encode() not in path.read_bytes()


def test_torch_export_computes_the_same_and_holds_no_pickle(tmp_path: Path) -> None:
    path, plain = tmp_path / "model.pt2", network()
    _forms.write_program(plain, SHAPE, path)
    program = torch.export.load(path).module()
    for number in (1, 7):
        pictures = torch.rand(number, *SHAPE)
        assert torch.equal(program(pictures), plain(pictures))
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    # A pickle of protocol 2 and later begins so; torch keeps one in a zip file of its own.
    assert [n for n, c in contents.items() if c[:2] in (b"\x80\x02", b"\x80\x04", b"PK")] == []
    assert not any(b"/nni_robust/" in content for content in contents.values())


@pytest.mark.parametrize("shift", [0.01, -3.0, float("nan")])
def test_a_form_that_differs_is_refused_with_the_difference(shift: float) -> None:
    plain = network()
    said = "nan" if shift != shift else f"{abs(shift):.1g}"
    with pytest.raises(UserError, match=f"probe: a logit differs by {said}.*not exported"):
        _forms.compare(plain, Off(plain, shift), SHAPE, what="probe")
    assert _forms.compare(plain, Off(plain, TOLERANCE / 2), SHAPE) > 0


def test_a_form_that_differs_on_real_pictures_only_is_refused() -> None:
    plain, real = network(), real_pictures()

    def form(pictures: Tensor) -> Tensor:
        same: Tensor = plain(pictures)
        return same + 1 if torch.equal(pictures, real) else same

    _forms.compare(plain, form, SHAPE)
    with pytest.raises(UserError, match="differs by 1 "):
        _forms.compare(plain, form, SHAPE, real)


def test_a_form_for_one_number_of_pictures_is_refused() -> None:
    plain = network()

    def form(pictures: Tensor) -> Tensor:
        same: Tensor = plain(pictures)
        return same[:2]

    with pytest.raises(UserError, match=r"logits of shape \(2, 10\), the network \(5, 10\)"):
        _forms.compare(plain, form, SHAPE)


class Undecided(nn.Module):
    """No exporter can follow a branch on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum().item() > 3 else -x.flatten(1)


def test_what_cannot_be_exported_is_told_in_one_sentence(tmp_path: Path) -> None:
    for write in (_forms.write_program, _forms.write_onnx):
        with pytest.raises(UserError, match="cannot be made") as caught:
            write(Undecided(), SHAPE, tmp_path / "model")
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Median(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, 2 * x, 3 * x]).median(dim=0).values.flatten(1)


def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnx: cannot be made: .*aten\.median") as caught:
        _forms.write_onnx(Median(), SHAPE, tmp_path / "model.onnx")
    assert "\x1b" not in str(caught.value)


def test_without_onnx_the_command_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'nni-robust\[onnx\]'"):
        _forms.write_onnx(network(), SHAPE, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_writes_all_forms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nni_robust.architecture import Architecture
    from nni_robust.training import save_weights

    architecture = Architecture(
        "tiny",
        "robnet",
        {"init_channels": 4, "cells": 3},
        _sample("33123210120232"),
        input_shape=SHAPE,
        weights=tmp_path / "tiny.safetensors",
    )
    save_weights(architecture.build(pretrained=False), tmp_path / "tiny.safetensors")
    architecture.save(tmp_path / "tiny.yaml")
    out = tmp_path / "out"
    forms = ["--onnx", "--torch-export", "--standalone", "--dataset", "digits"]
    assert main(["export", str(tmp_path / "tiny.yaml"), "--to", str(out), *forms]) == 0
    said = capsys.readouterr().out
    assert "on random pictures and 16 of digits" in said
    card = (out / "README.md").read_text()
    for file in ("model.onnx", "model.pt2", "network.py"):
        assert (out / file).is_file()
        assert f"`{file}`" in card
    # Forms of an earlier export do not stay beside other weights.
    torch.manual_seed(1)
    save_weights(architecture.build(pretrained=False), tmp_path / "tiny.safetensors")
    assert main(["export", str(tmp_path / "tiny.yaml"), "--to", str(out)]) == 0
    assert "removed model.onnx, model.pt2, network.py" in capsys.readouterr().out
    assert not (out / "model.onnx").exists()
    assert "model.onnx" not in (out / "README.md").read_text()


def _sample(code: str) -> dict[str, Any]:
    from nni_robust.search_spaces import RobNetSpace

    return dict(RobNetSpace.decode(code, cells=3))
