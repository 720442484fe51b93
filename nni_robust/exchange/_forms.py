"""Other forms of a network: ONNX and ``torch.export``, and how far they are from the original."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.errors import UserError
from nni_robust.store import atomic_path

__all__ = ["TOLERANCE", "compare", "write_onnx", "write_program"]

#: Largest allowed difference of a logit, as a share of the largest logit (at least of 1).
TOLERANCE = 1e-4

#: Numbers of pictures that forms are compared on: the first is that of the example.
_BATCHES = (2, 1, 5)

Forward = Callable[[Tensor], Tensor]


def compare(
    network: nn.Module,
    form: Forward,
    input_shape: tuple[int, int, int],
    real: Tensor | None = None,
    *,
    what: str = "form",
) -> float:
    """Largest difference of a logit between a network and another form of it.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    form
        The other form: pictures to logits.
    input_shape
        (C, H, W) of pictures.
    real
        Real pictures to compare on besides random ones, (N, C, H, W), float in [0, 1].
    what
        The form's name, for the message.

    Raises
    ------
    UserError
        If it is above :data:`TOLERANCE`, with the difference; or if the form does not run.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(n, *input_shape, generator=generator) for n in _BATCHES]
    batches += [] if real is None else [real]
    worst = 0.0
    for pictures in batches:
        with torch.no_grad():
            wanted = network(pictures)
            try:
                found = form(pictures)
            except Exception as e:  # whatever another runtime raises
                raise _cannot(what, e, "does not run") from e
        if found.shape != wanted.shape:
            raise UserError(
                f"{what}: gives logits of shape {tuple(found.shape)}, the network "
                f"{tuple(wanted.shape)}; it was not exported"
            )
        difference = (found - wanted).abs().max().item()
        allowed = TOLERANCE * max(1.0, wanted.abs().max().item())
        if not difference <= allowed:  # NaN too
            raise UserError(
                f"{what}: a logit differs by {difference:.3g} from the network's, {allowed:.3g} is "
                "allowed; it was not exported"
            )
        worst = max(worst, difference)
    return worst


def write_onnx(network: nn.Module, input_shape: tuple[int, int, int], path: Path) -> Forward:
    """Write a network as ONNX, its number of pictures free; how the file computes.

    Raises
    ------
    UserError
        If a package is missing, or the network cannot be exported.
    """
    packages = ("onnx", "onnxscript", "onnxruntime")
    try:
        runtime: Any = [importlib.import_module(name) for name in packages][-1]
    except ImportError:
        raise UserError(
            f"--onnx needs {', '.join(packages)}: pip install 'nni-robust[onnx]'"
        ) from None
    try:
        with atomic_path(path) as temporary, _quiet():
            torch.onnx.export(
                _program(network, input_shape),
                f=str(temporary),
                input_names=["pictures"],
                output_names=["logits"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as e:  # the exporter raises its own kinds
        raise _cannot("onnx", e) from e
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pictures": x.numpy()})[0])

    return forward


def write_program(network: nn.Module, input_shape: tuple[int, int, int], path: Path) -> Forward:
    """Write a network as a ``torch.export`` program, its number of pictures free; its forward.

    Raises
    ------
    UserError
        If this torch cannot, or the network cannot be exported.
    """
    try:
        with atomic_path(path) as temporary, _quiet():
            program = _program(network, input_shape)
            with temporary.open("wb") as file:
                torch.export.save(program, file)
        forward: Forward = torch.export.load(path).module()
    except Exception as e:  # the exporter raises its own kinds
        raise _cannot("torch-export", e) from e
    return forward


def _program(network: nn.Module, input_shape: tuple[int, int, int]) -> Any:
    """The network as torch exports it, without what belongs to this machine.

    Paths of source files go, and the example pictures, which torch would keep as a pickle.
    """
    pictures = torch.rand(_BATCHES[0], *input_shape)
    free = {0: torch.export.Dim("pictures", min=1)}
    program: Any = torch.export.export(network, (pictures,), dynamic_shapes=(free,), strict=False)
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes on their own progress from the user."""
    before = {name: logging.getLogger(name).level for name in _TALKERS}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in _TALKERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


_TALKERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


def _cannot(what: str, error: Exception, verb: str = "cannot be made") -> UserError:
    """One sentence of an exporter's error: of the first cause, without its advice and colours."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause))
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return UserError(f"{what}: {verb}: {type(cause).__name__}: {reason}")
