"""One PyTorch file that builds a network and loads its weights, without NNI and without us."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from nni_robust import __version__
from nni_robust.errors import UserError

from ._classes import classes_source
from ._trace import trace_network

__all__ = ["load_standalone", "standalone_source"]

_HEAD = '''\
"""A network as plain PyTorch, written by nni-robust {version}.

Needs torch and safetensors only. Pictures are float, (N, {channels}, {height}, {width}), in [0, 1];
whatever normalisation the network wants is a layer of it. What it computes is what it computed in
evaluation mode: parts that act in training only (dropped paths, an auxiliary head) are not here.

    python {name} prints what it is; `from {stem} import load` loads it.
"""

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

INPUT_SHAPE = {shape}
NUM_CLASSES = {classes}
SHA256 = "{sha256}"  # of model.safetensors


'''

_TAIL = '''


def build():
    """The network with fresh weights; load() gives those that were trained."""
    return {network}


def load(path=Path(__file__).with_name("model.safetensors")):
    """The trained network, in evaluation mode on the CPU."""
    from safetensors.torch import load_file

    if hashlib.sha256(Path(path).read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{{path}} does not hold the weights that this file was written for")
    network = build()
    network.load_state_dict(load_file(path))
    return network.eval()


if __name__ == "__main__":
    model = load()
    with torch.no_grad():
        logits = model(torch.zeros(1, *INPUT_SHAPE))
    print(model)
    print(sum(p.numel() for p in model.parameters()), "parameters,", tuple(logits.shape), "logits")
'''


def standalone_source(
    network: nn.Module, input_shape: tuple[int, int, int], num_classes: int, sha256: str, name: str
) -> str:
    """The source of a file that builds `network`, as it is in evaluation mode.

    Parameters
    ----------
    network
        Any plain network whose forward consists of calls of torch; left as it is.
    input_shape
        (C, H, W) of its pictures, in pixels. Sizes that the network computes with are fixed to it.
    num_classes
        Its outputs.
    sha256
        Of its weights' file.
    name
        Of the file to be written, such as ``"network.py"``.

    Raises
    ------
    UserError
        If something in the network has no place in plain PyTorch source.
    """
    plain = copy.deepcopy(network).to("meta").eval()
    try:
        body, own = classes_source(plain, trace_network(plain, input_shape))
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"no standalone file can be made: {reason}") from e
    channels, height, width = input_shape
    head = _HEAD.format(
        version=__version__,
        channels=channels,
        height=height,
        width=width,
        name=name,
        stem=Path(name).stem,
        shape=tuple(input_shape),
        classes=num_classes,
        sha256=sha256,
    )
    for word, line in (
        ("OrderedDict", "from collections import OrderedDict\n"),
        ("F.", "from torch.nn import functional as F\n"),
    ):
        if word not in body:
            head = head.replace(line, "")
    network_source = own.replace("\n", "\n    ")
    return (head + body + _TAIL.format(network=network_source)).replace("\n\n\n\n\n", "\n\n\n")


def load_standalone(path: Path) -> nn.Module:
    """The trained network of a file that :func:`standalone_source` wrote just now."""
    spec = importlib.util.spec_from_file_location("nni_robust_standalone", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.load()
    return network
