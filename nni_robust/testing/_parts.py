"""What the suites bring along: a tiny space, an evaluator that costs nothing, an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nni
import torch
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableBatchNorm2d, MutableConv2d
from torch import Tensor, nn

from nni_robust.config import as_mapping, parse
from nni_robust.nni_adapter.replay import ReplayMixin
from nni_robust.store import content_key
from nni_robust.task import Task
from nni_robust.training import Recipe
from nni_robust.trial import StoredEvaluator

__all__ = ["AttackedNet", "HashEvaluator", "ReplayEngine", "TinySpace", "easy_network"]

#: A few of the digits, so that a strategy may train a supernet on them within a second.
_TASK: dict[str, Any] = {
    "dataset": "digits",
    "threat": {"eps": 0.1},
    "train_limit": 32,
    "validation_limit": 16,
}
_TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 16,
    "lr": 0.02,
    "attack": {"steps": 1},
    "validation_attack": None,
}


class AttackedNet(nn.Module):
    """A small network with everything that an attack could disturb."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(4, 4, 3, groups=2, padding=1),
            nn.BatchNorm2d(4, affine=False),
        )
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of pictures (N, channels, H, W), float in [0, 1]."""
        logits: Tensor = self.head(self.body(x).relu().mean((2, 3)))
        return logits


def easy_network(shape: Sequence[int], classes: int) -> nn.Module:
    """A linear network all of whose pictures lie close to a border between classes."""
    linear = nn.Linear(int(torch.Size(shape).numel()), classes)
    network = nn.Sequential(nn.Flatten(), linear).eval()
    with torch.no_grad():
        linear.bias.sub_(network(torch.full((1, *shape), 0.5))[0])
        linear.weight.mul_(20)
        linear.bias.mul_(20)
    return network


class TinySpace(ModelSpace):
    """36 networks of NNI's own parts; they can share weights and become differentiable.

    Parameters
    ----------
    num_classes
        Outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        width = nni.choice("width", [2, 4, 6, 8])
        self.stem = MutableConv2d(3, width, 3, padding=1)
        self.norm = MutableBatchNorm2d(width)
        self.first = LayerChoice(_operations(width), label="first")
        self.second = LayerChoice(_operations(width), label="second")
        self.head = MutableConv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, 3, H, W), float in [0, 1]."""
        x = torch.relu(self.first(torch.relu(self.norm(self.stem(x)))))
        logits: Tensor = self.head(torch.relu(self.second(x))).mean((2, 3))
        return logits


def _operations(width: Any) -> dict[str, nn.Module]:
    return {
        "conv": MutableConv2d(width, width, 3, padding=1),
        "point": MutableConv2d(width, width, 1),
        "skip": nn.Identity(),
    }


@nni.trace
class HashEvaluator(StoredEvaluator):
    """A score for any sample of any space, in no time: a number in [0, 1) made of a hash.

    It has what strategies ask of an evaluator (``task``, ``recipe``, ``store``, ``variant`` and the
    arguments below), so that one with phases of its own really runs them, on a few of the digits.

    Parameters
    ----------
    seed
        Another seed gives other scores.
    failures
        Share of the samples whose trial fails.
    store
        Folder of the run's store.
    task, train
        Settings of a :class:`nni_robust.task.Task` and a :class:`nni_robust.training.Recipe`.
    phase
        Name of the trial in records.
    supernet, teacher, tutors
        What a strategy hands to its candidates; part of the key, but not of the score.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        failures: float = 0.0,
        store: str | None = None,
        task: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        phase: str = "candidate",
        supernet: str | None = None,
        teacher: str | None = None,
        tutors: Mapping[str, Any] | None = None,
    ) -> None:
        self.task = parse(Task, _TASK if task is None else task, "task")
        self.recipe = parse(Recipe, _TRAIN if train is None else train, "evaluator.train")
        self.seed, self.failures, self.store, self.phase = seed, failures, store, phase
        self.supernet, self.teacher = supernet, teacher
        self.tutors = None if tutors is None else dict(tutors)

    def variant(self, **changes: Any) -> HashEvaluator:
        """A copy with some arguments changed, as strategies make it for a phase."""
        return HashEvaluator(**{**self.settings(), "store": self.store, **changes})

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            "seed": self.seed,
            "failures": self.failures,
            "task": as_mapping(self.task),
            "train": as_mapping(self.recipe),
            "phase": self.phase,
            "supernet": self.supernet,
            "teacher": self.teacher,
            "tutors": self.tutors,
        }

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Score the sample, or fail."""
        if _share("failure", self.seed, model.sample) < self.failures:
            raise RuntimeError("this trial fails because the suite wants it")
        score = _share("score", self.seed, model.sample)
        return {"metrics": {"default": score, "clean": (1 + score) / 2}}


def _share(*parts: Any) -> float:
    """A number in [0, 1) that depends on `parts` only."""
    return int(content_key(*parts)[:8], 16) / 2.0**32


class ReplayEngine(ReplayMixin, SequentialExecutionEngine):
    """NNI's sequential engine; it goes on after failures, and answers what is in the store."""

    retries = 0  # models run in this process, so none can die alone

    def __init__(self, budget: int | None) -> None:
        super().__init__(None, None, True)
        self.budget = budget
