"""What the GPU benchmarks share: the machine, the clock, partial results, CIFAR-10 (JPEG)."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_robust.architecture import load_architecture
from nni_robust.bench import machine
from nni_robust.bench._networks import ResNet18
from nni_robust.data import DataSplits, ImageSet, load_dataset
from nni_robust.errors import UserError
from nni_robust.store import write_text

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Clock:
    """Seconds of this command, and whether some are left."""

    def __init__(self, budget: float) -> None:
        self.began, self.budget = time.monotonic(), budget

    def used(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        return self.budget - self.used()


class Results:
    """A JSON file that is written anew after every figure: a command that is cut off leaves it."""

    def __init__(self, path: Path, device: torch.device, arguments: argparse.Namespace) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, Any] = {
            "machine": {**machine(), "device": str(device)},
            "arguments": {key: str(value) for key, value in vars(arguments).items()},
            "left_out": [],
        }
        if device.type == "cuda":
            self.values["machine"]["cuda"] = torch.version.cuda
            self.values["machine"]["cudnn"] = torch.backends.cudnn.version()

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        print(f"left out: {what}: {why}", flush=True)
        self.values["left_out"].append(f"{what}: {why}")
        self.write()

    def write(self) -> None:
        write_text(self.path, json.dumps(self.values, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser, seconds: int) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="budget of the whole command"
    )
    parser.add_argument("--quick", action="store_true", help="a minute on a CPU: does it run?")


def in_one_sentence(main: Callable[[], None]) -> None:
    """Run a script; what the user did wrong is told in one sentence."""
    try:
        main()
    except UserError as e:
        raise SystemExit(f"error: {e}") from None


def device_of(arguments: argparse.Namespace) -> torch.device:
    try:
        device = torch.device(arguments.device)
    except RuntimeError:
        raise UserError(f"--device '{arguments.device}' is not allowed; cpu or cuda is") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --quick --device cpu shows that the script runs")
    return device


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_networks(names: list[str]) -> None:
    """Refuse unknown networks before anything is measured."""
    for name in names:
        if name != "resnet18":
            load_architecture(name)


def network(name: str, quick: bool) -> nn.Module:
    """ResNet-18 of width 64 (4 if quick), or an architecture of the zoo, for ten classes."""
    if name == "resnet18":
        return ResNet18(4 if quick else 64)
    return load_architecture(name).build(num_classes=10, pretrained=False)


def pictures(archive: Path | None) -> DataSplits:
    """CIFAR-10 (JPEG) from its archive, in memory as bytes; without one, digits as a stand-in.

    The last 1,000 training pictures in random order are for validation.
    """
    if archive is None:
        return load_dataset("digits", test=True)
    import numpy as np
    from PIL import Image

    found: dict[str, list[tuple[str, np.ndarray[Any, Any], int]]] = {"train": [], "test": []}
    if not archive.is_file():
        raise UserError(f"--archive: there is no file '{archive}'")
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts[-3:]
            if not member.isfile() or len(parts) != 3 or parts[0] not in found:
                continue
            file = tar.extractfile(member)
            assert file is not None
            picture = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
            found[parts[0]].append((member.name, picture, CLASSES.index(parts[1])))
    sets = {}
    for split, rows in found.items():
        rows.sort(key=lambda row: row[0])
        images = torch.from_numpy(np.stack([row[1] for row in rows])).permute(0, 3, 1, 2)
        labels = torch.tensor([row[2] for row in rows])
        sets[split] = ImageSet(images.contiguous(), labels, CLASSES, ("crop", "flip"))
    # In an order of its own each: files lie class by class.
    order = {
        split: torch.randperm(len(one), generator=torch.Generator().manual_seed(0))
        for split, one in sets.items()
    }
    train = sets["train"].take(order["train"])
    held = min(1000, len(train) // 10)
    numbers = torch.arange(len(train))
    return DataSplits(
        "cifar10-jpeg",
        train.take(numbers[:-held]),
        train.take(numbers[-held:]),
        sets["test"].take(order["test"]),
    )
