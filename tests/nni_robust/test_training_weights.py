"""Weights in files: strict, safe, and clear about what does not fit."""

from __future__ import annotations

import os
import pickle
import stat

import pytest
import torch
from torch import nn

from nni_robust.errors import UserError
from nni_robust.training import load_weights, save_weights
from nni_robust.training import weights as weights_module


def make(seed=0, width=6):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten())
    model[1].running_mean.normal_()
    return model


def equal(a, b):
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_round_trip_in_every_memory_format(tmp_path):
    model = make().to(memory_format=torch.channels_last)
    path = tmp_path / "new" / "w.safetensors"
    save_weights(model, path, {"phase": "final"})
    plain, last = make(1), make(1).to(memory_format=torch.channels_last)
    assert load_weights(plain, path) == {"phase": "final"}
    load_weights(last, path)
    assert equal(plain, model)
    assert equal(last, model)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_shared_weights_are_saved_once_each(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "w.safetensors")
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    other[1].weight = other[0].weight
    load_weights(other, tmp_path / "w.safetensors")
    assert equal(other, model)


def test_file_is_as_readable_as_any_other(tmp_path):
    save_weights(make(), tmp_path / "w.safetensors")
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("w.safetensors", "other")]
    assert modes[0] == modes[1]
    assert sorted(os.listdir(tmp_path)) == ["other", "w.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(make(), path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(weights_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(make(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_files_with_tensors_only(tmp_path, wrap, suffix):
    model, path = make(), tmp_path / f"w{suffix}"
    state = dict(model.state_dict())
    torch.save({"state_dict": state, "epoch": 3} if wrap else state, path)
    other = make(1)
    load_weights(other, path)
    assert equal(other, model)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.safetensors", "bomb.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_never_run(tmp_path, name, zipped):
    path, mark = tmp_path / name, tmp_path / "ran"
    if zipped:
        torch.save({"a": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(UserError) as caught:
        load_weights(make(), path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_an_old_torch_does_not_open_pickles(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    torch.save(dict(make().state_dict()), path)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UserError, match=r"torch 2.9.1\+cpu cannot read safely"):
        load_weights(make(), path)


def other_width(path):
    save_weights(make(width=7), path)


def more(path):
    save_weights(nn.Sequential(*make(), nn.Linear(2, 2)), path)


def fewer(path):
    save_weights(make()[:1], path)


def truncated(path):
    save_weights(make(), path)
    path.write_bytes(path.read_bytes()[:-5])


def page(path):
    path.write_text("<html>404</html>")


def empty(path):
    path.touch()


def absent(path):
    pass


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (other_width, r"'0.weight' has shape \(7, 3, 3, 3\), the network needs \(6, 3, 3, 3\)"),
        (more, "the network has no '3.bias'"),
        (fewer, "it has no '1.weight'"),
        (truncated, "no readable safetensors file"),
        (page, "no readable safetensors file"),
        (empty, "no readable safetensors file"),
        (absent, "no weights file"),
    ],
)
def test_files_that_do_not_fit_leave_the_network_alone(tmp_path, write, sentence):
    path = tmp_path / "w.safetensors"
    write(path)
    model, same = make(), make()
    with pytest.raises(UserError, match=sentence):
        load_weights(model, path)
    assert equal(model, same)


def test_torch_files_that_hold_no_tensors(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="no dictionary of tensors"):
        load_weights(make(), path)
    path.write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(UserError, match="damaged"):
        load_weights(make(), path)


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(UserError, match=r"only the ending '.safetensors'"):
        save_weights(make(), tmp_path / "w.pt")
