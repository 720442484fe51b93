"""The file without NNI: the same network for every space, where NNI and we cannot be imported."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nni_robust import load_architecture
from nni_robust.architecture import Architecture
from nni_robust.errors import UserError
from nni_robust.exchange import standalone_source
from nni_robust.exchange.standalone import load_standalone
from nni_robust.training import save_weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Small members of all spaces that ship, with the parts that a forward can have.
MEMBERS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "robnet": (
        "robnet-small",
        {"init_channels": 4, "cells": 3, "denoise": ["median", "dot", "gaussian"]},
        (3, 8, 8),
    ),
    "robnet-imagenet": (
        "robnet-large-imagenet",
        {"init_channels": 4, "cells": 3, "stem": "imagenet"},
        (3, 32, 32),
    ),
    "darts": ("darts-v2", {"width": 4, "cells": 3, "drop_path": 0.2}, (3, 16, 16)),
    "nasnet": ("nasnet-a", {"width": 4, "cells": 3, "cell": "nasnet"}, (3, 16, 16)),
    "wide-resnet": ("wrn-16-1", {}, (3, 16, 16)),
    "robust-blocks": (
        "robustresnet-a1",
        {"normalization": ["BatchNorm", "GroupNorm", "LayerNorm"], "activation": "SiLU"},
        (3, 16, 16),
    ),
    "inverted-residual": ("rnas-cl-s3-min", {}, (3, 16, 16)),
    "baseline": ("resnet-18", {"denoise": "mean"}, (3, 8, 8)),
    "densenet": ("densenet-121", {}, (3, 32, 32)),
}

#: Run where the test's own process has no part: torch and safetensors only.
PROGRAM = """
import importlib.util, pathlib, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nni", "nni_robust", "torchvision", "pytorch_lightning"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refused())
for name in ("nni", "nni_robust"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported")

import torch
from safetensors.torch import load_file, save_file

for folder in map(pathlib.Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location("network", folder / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pictures = load_file(folder / "pictures.safetensors")
    with torch.no_grad():
        network = module.load()
        save_file({k: network(v) for k, v in pictures.items()}, folder / "logits.safetensors")
"""


def member(name: str) -> Architecture:
    zoo, changes, shape = MEMBERS[name]
    found = load_architecture(zoo)
    sample = found.sample
    if name == "robust-blocks":
        sample = {k: 2 if k.endswith("depth") else v for k, v in sample.items()}
    space_args = {**found.space_args, **changes}
    return dataclasses.replace(found, space_args=space_args, sample=sample, input_shape=shape)


def shaken(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with statistics and zeros that could hide a mistake gone."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for buffer, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                if buffer is not None:
                    buffer.copy_(torch.rand(buffer.shape, generator=generator) + low)
            if module.weight is not None:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def write(network: nn.Module, shape: tuple[int, int, int], classes: int, folder: Path) -> str:
    """The two files; the source."""
    save_weights(network, folder / "model.safetensors")
    sha = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    source = standalone_source(network, shape, classes, sha, "network.py")
    (folder / "network.py").write_text(source)
    return source


def test_every_space_gives_the_same_logits_without_us(tmp_path: Path) -> None:
    wanted: dict[str, dict[str, Tensor]] = {}
    for name in MEMBERS:
        folder = tmp_path / name
        folder.mkdir()
        architecture = member(name)
        torch.manual_seed(0)
        network = shaken(architecture.build())
        source = write(network, architecture.input_shape, architecture.num_classes, folder)
        assert "nni" not in source.replace("nni-robust", "")
        # The number of pictures is free, also where the network computes with it.
        pictures = {str(n): torch.rand(n, *architecture.input_shape) for n in (1, 5)}
        save_file(pictures, folder / "pictures.safetensors")
        with torch.no_grad():
            wanted[name] = {key: network(value) for key, value in pictures.items()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in MEMBERS)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, tensors in wanted.items():
        found = load_file(tmp_path / name / "logits.safetensors")
        for key, logits in tensors.items():
            assert logits.isfinite().all(), name
            assert logits.std() > 0, name
            torch.testing.assert_close(found[key], logits, msg=lambda m, n=name: f"{n}: {m}")


def test_every_space_that_ships_is_among_them() -> None:
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    shipped = set(project["entry-points"]["nni_robust.search_spaces"])
    assert {load_architecture(zoo).space for zoo, *_ in MEMBERS.values()} == shipped


def test_it_is_trained_on_like_the_original(tmp_path: Path) -> None:
    """Same gradients in training mode, batch norms with batch statistics included."""
    architecture = member("wide-resnet")
    network = shaken(architecture.build())
    write(network, architecture.input_shape, 10, tmp_path)
    other = load_standalone(tmp_path / "network.py")
    x, y = torch.rand(6, *architecture.input_shape), torch.arange(6)
    for one in (network.train(), other.train()):
        nn.functional.cross_entropy(one(x), y).backward()
    ours, theirs = dict(network.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(theirs[name].grad, parameter.grad)


class Odd(nn.Module):
    """Batch sizes, in-place sums, a list, a branch on a shape, names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("1st", nn.Conv2d(3, 6, 3, padding=1))
        self.heads = nn.ModuleDict({"a-b": nn.Linear(6, 4), "c": nn.Linear(6, 4)})
        self.shared = nn.ReLU()
        self.scale = nn.Parameter(torch.rand(4))
        self.register_buffer("shift", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = self.shared(self.get_submodule("1st")(x))
        first, *rest = x.reshape(n, 2, 3, -1).split(1, dim=1)
        first = first.clone()
        for other in rest:
            first += 2.5 * other
        x = torch.cat([first, -first], dim=1).view(2 * n, 3, -1).view(n, 6, -1)
        x = 1 - x.mean(-1) / (3.0 if x.ndim == 3 else 4.0)
        out = self.heads["a-b"](self.shared(x)) @ torch.eye(4) + self.heads["c"](x)
        return out * self.scale + self.shift


def test_an_odd_network_comes_out_the_same(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Odd().eval()
    write(network, (3, 6, 6), 4, tmp_path)
    other = load_standalone(tmp_path / "network.py")
    for number in (1, 2, 3, 7):
        pictures = torch.rand(number, 3, 6, 6)
        assert torch.equal(other(pictures), network(pictures))


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.ones(3, 1, 1)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.constant).flatten(1)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.mean().item() > 0.5 else -x.flatten(1)


class Unsaved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.table).flatten(1)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Hidden(), "no standalone file can be made"),
        (Deciding(), "no standalone file can be made"),
        (Unsaved(), "the buffer 'table' of Unsaved is not in the weights"),
    ],
)
def test_what_has_no_place_in_plain_source_is_refused(network: nn.Module, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        standalone_source(network, (3, 4, 4), 48, "0" * 64, "network.py")
    assert "\n" not in str(caught.value)


def test_other_weights_are_refused_by_the_file(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    source = write(network, (3, 2, 2), 2, tmp_path)
    assert source.count("class ") == 0
    save_weights(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_standalone(tmp_path / "network.py")
