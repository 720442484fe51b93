"""Foreign checkpoints: those of RobNet's authors, broken ones, and ones that attack the reader."""

from __future__ import annotations

import collections
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from nni_robust.architecture import Architecture, checkpoint, load_architecture
from nni_robust.architecture.checkpoint import convert_checkpoint, read_checkpoint
from nni_robust.errors import UserError
from nni_robust.registry import search_spaces

ARGS = {"init_channels": 4, "cells": 3}
SAMPLE = search_spaces.get("robnet").decode("33123210120232", **ARGS)


def architecture(num_classes: int = 10) -> Architecture:
    return Architecture(
        "small", "robnet", ARGS, SAMPLE, {"kind": "published"}, num_classes, (3, 8, 8)
    )


def trained(num_classes: int = 10) -> Any:
    """A network whose weights and statistics are not the initial ones, and its optimizer."""
    torch.manual_seed(num_classes)
    network = architecture(num_classes).build()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    torch.autograd.backward(network(torch.rand(4, 3, 8, 8)).square().sum())
    optimizer.step()
    return network, optimizer


@pytest.fixture
def scheduler_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class as the authors have it, in a module that is not there when the file is read."""

    class CosineLRScheduler:
        __module__, __qualname__ = "lr_scheduler", "CosineLRScheduler"

        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.last_iter = optimizer, 169

    module = types.ModuleType("lr_scheduler")
    vars(module)["CosineLRScheduler"] = CosineLRScheduler
    monkeypatch.setitem(sys.modules, "lr_scheduler", module)
    return CosineLRScheduler


def authors_checkpoint(network: Any, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """What main.py of gmh14/RobNets saves."""
    return {
        "epoch": 169,
        "best_acc": 52.1,
        "optimizer": optimizer.state_dict(),
        "state_dict": network.state_dict(),
        "scheduler": scheduler,
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_checkpoint_of_the_authors_layout(
    scheduler_class: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    network, optimizer = trained()
    path = tmp_path / "RobNet_small.pth.tar"
    torch.save(
        authors_checkpoint(network, optimizer, scheduler_class(optimizer)),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    monkeypatch.delitem(sys.modules, "lr_scheduler")
    done = convert_checkpoint(path, architecture(), tmp_path / "new" / "small.yaml")
    assert done.outputs == 10
    assert set(done.left_out) == {
        "collections.defaultdict",
        "lr_scheduler.CosineLRScheduler",
        "torch.optim.sgd.SGD",
    }
    assert "lr_scheduler" not in sys.modules

    (tmp_path / "new").rename(tmp_path / "moved")
    loaded = load_architecture(tmp_path / "moved" / "small.yaml")
    assert loaded.trained
    assert loaded.provenance["kind"] == "published"
    assert "RobNet_small.pth.tar (SHA-256 " in loaded.provenance["note"]
    again = loaded.build().eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(x), network.eval()(x))
    with safe_open(tmp_path / "moved" / "small.safetensors", "pt") as file:
        assert file.metadata()["source"] == "RobNet_small.pth.tar"


def test_names_with_module_and_other_precision(tmp_path: Path) -> None:
    network, _ = trained()
    state = {f"module.{name}": t.double() for name, t in network.state_dict().items()}
    torch.save(state, tmp_path / "ddp.pth")
    done = convert_checkpoint(tmp_path / "ddp.pth", architecture(), tmp_path / "ddp.json")
    assert done.left_out == ()
    again = done.architecture.build()
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_a_classifier_with_more_outputs(tmp_path: Path) -> None:
    """The authors' SVHN networks have 100 outputs, of which the first 10 are the digits."""
    network, _ = trained(100)
    path, out = tmp_path / "svhn.pth", tmp_path / "svhn.yaml"
    torch.save({"state_dict": network.state_dict()}, path)
    with pytest.raises(UserError, match=r"num_classes=100 keeps them all, first_classes=True"):
        convert_checkpoint(path, architecture(), out)
    assert not out.exists()
    assert not out.with_suffix(".safetensors").exists()

    x = torch.rand(2, 3, 8, 8)
    logits = network.eval()(x)
    first = convert_checkpoint(path, architecture(), out, first_classes=True)
    assert first.outputs == 100
    torch.testing.assert_close(first.architecture.build().eval()(x), logits[:, :10])
    whole = convert_checkpoint(path, architecture(), out, num_classes=100)
    assert load_architecture(out) == whole.architecture
    assert torch.equal(whole.architecture.build().eval()(x), logits)
    with pytest.raises(UserError, match=r"100 outputs, 'small' has 200: num_classes=100 keeps"):
        convert_checkpoint(path, architecture(200), out, first_classes=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem.0.weight": None}, "the file has no 'stem.0.weight'"),
        ({"cells.9.x": torch.zeros(1)}, "the network has no 'cells.9.x'"),
        ({"stem.0.weight": torch.zeros(1)}, r"'stem.0.weight' has shape \(1,\) in the file"),
        ({"classifier.weight": torch.tensor(0.0)}, "'classifier.weight' has shape"),
        ({"stem.0.weight": "text"}, "'stem.0.weight' is none"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = {**trained()[0].state_dict(), **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        convert_checkpoint(tmp_path / "a.pth", architecture(), tmp_path / "a.yaml")
    assert not (tmp_path / "a.yaml").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(UserError, match="no checkpoint"):
        read_checkpoint(path)
    for content in (b"", b"text", b"PK\x05\x06" + b"\0" * 18, b"\x80\x02}q\x00", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no checkpoint that can be read safely"):
            read_checkpoint(path)
    for value in (torch.zeros(2), {}, [torch.zeros(2)], {"epoch": 3}):
        torch.save(value, path)
        with pytest.raises(UserError, match="holds no dictionary of tensors"):
            read_checkpoint(path)
    with pytest.raises(UserError, match="saved as"):
        convert_checkpoint(path, architecture(), tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.rand(500)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 12):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.pth"):
            read_checkpoint(path)


# ---------------------------------------------------------------------------- attacks


class Call:
    """Pickled, it calls a function as soon as it is read."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["scheduler", "epoch", "state_dict"])
def test_a_program_in_the_file_is_not_run(tmp_path: Path, place: str, zipped: bool) -> None:
    mark = tmp_path / "ran"
    program = f"open({str(mark)!r}, 'w').close()"
    path = tmp_path / "evil.pth"
    for attack in (
        Call(exec, program),
        Call(eval, program),
        Call(open, str(mark), "w"),
        Call(getattr, Call(__import__, "os"), "getcwd"),
        Call(collections.defaultdict, Call(exec, program)),
    ):
        value = {"state_dict": trained()[0].state_dict(), place: attack}
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        if place == "state_dict":
            with pytest.raises(UserError, match="holds no dictionary of tensors"):
                read_checkpoint(path)
        else:
            tensors, left_out = read_checkpoint(path)
            assert len(tensors) == len(value["state_dict"])
            assert left_out
            assert all(name.split(".")[0] in ("builtins", "io", "collections") for name in left_out)
        assert not mark.exists()
    assert "StandIn" not in str(torch.serialization.get_safe_globals())


@pytest.mark.parametrize("module", ["os", "posix", "sys"])
def test_modules_of_the_system_are_refused(tmp_path: Path, module: str) -> None:
    import os

    mark = tmp_path / "ran"
    function = {"os": os.getenv, "posix": os.system, "sys": sys.exit}[module]
    torch.save({"a": Call(function, f"touch {mark}")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=rf"to read it is to call {module}\."):
        read_checkpoint(tmp_path / "evil.pth")
    assert not mark.exists()


def test_an_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(checkpoint, "SAFE_TORCH", (99, 0))
    with pytest.raises(UserError, match="cannot read safely"):
        read_checkpoint(tmp_path / "a.pth")
