"""Teachers: trained networks that a search compresses or learns from.

A teacher is loaded where its weights are (:func:`load_teacher`), or trained once, as an NNI trial
of its own (:class:`TeacherTraining`), whose weights other trials take from the store
(:func:`teacher_from_store`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nni

from nni_robust._teacher import ROBUSTBENCH, Teacher, absolute_teacher
from nni_robust.config import as_mapping, parse
from nni_robust.errors import UserError
from nni_robust.store import Store, content_key
from nni_robust.task import Task
from nni_robust.trial import StoredEvaluator, default_device, report_epoch

if TYPE_CHECKING:
    from torch import nn

    from nni_robust.data import DataSplits

__all__ = [
    "Teacher",
    "TeacherTraining",
    "absolute_teacher",
    "load_teacher",
    "source_key",
    "teacher_from_store",
]

_log = logging.getLogger(__name__)

#: RobustBench's data sets by number of classes; its networks know no other.
_BENCHMARKS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}

#: A teacher whose robust accuracy is less than this above chance is called not robust.
_MARGIN = 0.05


def load_teacher(teacher: Teacher, num_classes: int, input_shape: Sequence[int]) -> nn.Module:
    """A teacher with its trained weights.

    Parameters
    ----------
    teacher
        Which one.
    num_classes
        Outputs that it must have.
    input_shape
        (C, H, W) of the pictures that it must take.

    Returns
    -------
    nn.Module
        On the CPU, in evaluation mode; no parameter requires a gradient.

    Raises
    ------
    UserError
        If it is unknown, has no weights, its weights are missing, damaged or those of another
        architecture, or it does not fit the pictures or classes.
    """
    name = teacher.architecture
    if name.startswith(ROBUSTBENCH):
        if teacher.weights is not None:
            raise UserError(
                f"teacher.weights: {teacher.weights!r} is not allowed with '{name}', which brings "
                "its own"
            )
        return _ready(_from_robustbench(name, num_classes), teacher, num_classes, input_shape)
    if teacher.weights is None and not _architecture(teacher).trained:
        raise UserError(
            f"teacher '{name}' has no weights; give teacher.weights, or teacher.train and a "
            "strategy that trains it first"
        )
    network = _build(teacher, num_classes, pretrained=teacher.weights is None)
    if teacher.weights is not None:
        from nni_robust.training.weights import load_weights

        load_weights(network, Path(teacher.weights).expanduser())
    return _ready(network, teacher, num_classes, input_shape)


def teacher_from_store(
    store: str | Path, key: str, teacher: Teacher, num_classes: int, input_shape: Sequence[int]
) -> nn.Module:
    """The teacher that a :class:`TeacherTraining` left in a store; see :func:`load_teacher`.

    Parameters
    ----------
    store
        The store's folder.
    key
        The trial's key, as its record has it.
    teacher, num_classes, input_shape
        See :func:`load_teacher`.

    Raises
    ------
    UserError
        If there are no such weights, or they do not fit.
    """
    from nni_robust.training.weights import load_weights

    if teacher.architecture.startswith(ROBUSTBENCH):
        network = _from_robustbench(teacher.architecture, num_classes)
    else:
        network = _build(teacher, num_classes, pretrained=False)
    load_weights(network, Store(store).folder(key) / "weights.safetensors")
    return _ready(network, teacher, num_classes, input_shape)


def source_key(teacher: Teacher) -> str:
    """What the teacher is, file contents included: equal for equal teachers only."""
    files = [teacher.weights]
    if Path(teacher.architecture).suffix in (".yaml", ".yml", ".json"):
        files.append(teacher.architecture)
    if not teacher.architecture.startswith(ROBUSTBENCH):
        own = _architecture(teacher).weights
        files.append(None if own is None else str(own))
    return content_key(as_mapping(teacher), [_digest(file) for file in files])


def _digest(file: str | None) -> str | None:
    """Hash of a file's bytes; None where there is none."""
    path = None if file is None else Path(file).expanduser()
    if path is None or not path.is_file():
        return None
    stat = path.stat()
    return _digest_of(str(path.absolute()), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _digest_of(path: str, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _architecture(teacher: Teacher) -> Any:
    from nni_robust.architecture import load_architecture

    return load_architecture(teacher.architecture)


def _build(teacher: Teacher, num_classes: int, *, pretrained: bool) -> nn.Module:
    network: nn.Module = _architecture(teacher).build(num_classes, pretrained=pretrained)
    return network


def _from_robustbench(name: str, num_classes: int) -> nn.Module:
    """A network of the RobustBench package, downloaded by it on first use."""
    if num_classes not in _BENCHMARKS:
        raise UserError(
            f"teacher '{name}' is not allowed with {num_classes} classes; RobustBench has networks "
            f"for {', '.join(map(str, _BENCHMARKS))}"
        )
    try:
        package: Any = importlib.import_module("robustbench.utils")
    except ImportError:
        raise UserError(
            f"teacher '{name}' needs RobustBench: pip install "
            "git+https://github.com/RobustBench/robustbench.git"
        ) from None
    import torch

    folder = Path(torch.hub.get_dir(), "robustbench")
    for threat in ("Linf", "L2"):
        try:
            network: nn.Module = package.load_model(
                name.removeprefix(ROBUSTBENCH),
                model_dir=str(folder),
                dataset=_BENCHMARKS[num_classes],
                threat_model=threat,
            )
        except KeyError:  # no such name for this threat
            continue
        except Exception as e:  # whatever a download or another package's code raises
            raise UserError(
                f"teacher '{name}' could not be loaded: {type(e).__name__}: "
                f"{' '.join(str(e).split())}"
            ) from e
        return network
    raise UserError(
        f"teacher '{name}': RobustBench knows no such network for {_BENCHMARKS[num_classes]}"
    )


def _ready(
    network: nn.Module, teacher: Teacher, num_classes: int, input_shape: Sequence[int]
) -> nn.Module:
    """The network frozen, once it has shown that it fits."""
    import torch

    network = network.eval().requires_grad_(False)
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError) as e:
        raise UserError(
            f"teacher '{teacher.architecture}' does not take pictures of shape "
            f"{tuple(input_shape)}: {' '.join(str(e).split())}"
        ) from e
    if logits.shape != (1, num_classes):
        raise UserError(
            f"teacher '{teacher.architecture}' has {logits.shape[-1]} outputs; the task has "
            f"{num_classes} classes"
        )
    return network


@nni.trace
class TeacherTraining(StoredEvaluator):
    """Make a task's teacher ready for other trials: load or train it, and measure it.

    Its record has ``metrics`` (``default``: the lowest accuracy under the attacks, ``clean``, one
    key per attack, ``params``, ``macs``, ``seconds``), ``lipschitz`` (local Lipschitz value under
    PGD-20 on up to 256 pictures), ``robust`` (None where no attack was asked for), ``warning`` (a
    sentence where it is not robust: a student cannot learn what its teacher does not know) and
    ``history`` of its training. Its weights lie beside it. All is measured on the validation split.

    The training depends on data, threat, recipe and seed only: tasks that differ in attack or
    budget share it.

    Parameters
    ----------
    task
        Settings of a :class:`nni_robust.task.Task` with a teacher.
    store
        Folder of the run's store.
    seed
        Of the attacks; the training's seed is the teacher's own.
    attacks
        What it is measured under; None is the task's attack, or ``pgd20``.
    score_limit
        Measure on that many pictures only; None is the whole split.

    Raises
    ------
    UserError
        If the task has no teacher, or a setting is impossible.
    """

    phase = "teacher"
    uses_sample = False

    def __init__(
        self,
        *,
        task: Mapping[str, Any] | None = None,
        store: str | None = None,
        seed: int = 0,
        attacks: Sequence[Any] | None = None,
        score_limit: int | None = None,
    ) -> None:
        self.task = parse(Task, task, "task")
        if self.task.teacher is None:
            raise UserError("task.teacher is missing: there is no teacher to train or load")
        self.teacher = self.task.teacher
        if self.teacher.train is not None:
            from nni_robust.training import Recipe

            self.recipe: Recipe | None = parse(Recipe, self.teacher.train, "task.teacher.train")
        else:
            self.recipe = None
        from nni_robust.attacks import scoring_attacks

        self.attacks = scoring_attacks(attacks, self.task.attack, self.task.threat)
        self.store, self.seed, self.score_limit = store, seed, score_limit

    def extra_repr(self) -> str:
        return f"teacher={self.teacher}, attacks={self.attacks}"

    def settings(self) -> dict[str, Any]:
        """See :class:`nni_robust.trial.StoredEvaluator`."""
        return {
            **self._part("attack", "budget"),
            "seed": self.seed,
            "attacks": self.attacks,
            "score_limit": self.score_limit,
        }

    def key(self, model: Any) -> str:
        """Name of the result in the store; the space plays no part."""
        return content_key(type(self).__name__, self.settings())

    def _part(self, *without: str) -> dict[str, Any]:
        """The task but for some of its settings, and what the teacher is."""
        task = as_mapping(self.task)
        for name in ("teacher", *without):
            del task[name]
        return {"task": task, "teacher": source_key(self.teacher)}

    def measure(self, model: Any, folder: Path | None) -> dict[str, Any]:
        """Load or train, then measure."""
        from nni_robust.analysis import lipschitz_value
        from nni_robust.cost import measure_cost
        from nni_robust.data import load_task
        from nni_robust.evaluation import evaluate
        from nni_robust.training import save_weights

        data = load_task(self.task)
        network, history = self._network(data)
        network = network.to(default_device())
        shared: dict[str, Any] = {"limit": self.score_limit, "seed": self.seed}
        found = evaluate(network, data.validation, self.attacks, threat=self.task.threat, **shared)
        metrics = found.metrics()
        under = [value for name, value in metrics.items() if name != "clean"]
        chance = 1 / data.num_classes
        robust = min(under) >= chance + _MARGIN if under else None
        warning = None
        if robust is False:
            warning = (
                f"the teacher '{self.teacher.architecture}' is not robust: its accuracy is "
                f"{min(under):.1%} under attack, and chance is {chance:.1%}"
            )
            _log.warning(warning)
        if folder is not None:
            save_weights(network, folder / "weights.safetensors", {"phase": self.phase})
        cost = measure_cost(network, data.input_shape)
        return {
            "metrics": {
                "default": min(under) if under else found.clean,
                **metrics,
                "params": cost.params,
                "macs": cost.macs,
                "seconds": round(sum(r["seconds"] for r in history) + found.seconds, 3),
            },
            "lipschitz": lipschitz_value(
                network,
                data.validation,
                "pgd20",
                threat=self.task.threat,
                limit=min(self.score_limit or 256, 256),
                seed=self.seed,
            ),
            "robust": robust,
            "warning": warning,
            "history": history,
        }

    def _network(self, data: DataSplits) -> tuple[nn.Module, list[dict[str, Any]]]:
        """The trained teacher and the records of its training."""
        shape = data.input_shape
        if self.recipe is None or self._has_weights():
            return load_teacher(self.teacher, data.num_classes, shape), []
        if self.store is None:
            return self._train(data, None)
        part = self._part("attack", "budget", "test_limit")
        key, store = content_key("teacher's weights", part), Store(self.store)
        record = store.once(key, lambda folder: {"history": self._train(data, folder)[1]})
        return (
            teacher_from_store(self.store, key, self.teacher, data.num_classes, shape),
            record["history"],
        )

    def _has_weights(self) -> bool:
        name = self.teacher.architecture
        return (
            self.teacher.weights is not None
            or name.startswith(ROBUSTBENCH)
            or bool(_architecture(self.teacher).trained)
        )

    def _train(
        self, data: DataSplits, folder: Path | None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        import torch

        from nni_robust.training import save_weights, train

        assert self.recipe is not None
        torch.manual_seed(self.teacher.seed)
        result = train(
            _build(self.teacher, data.num_classes, pretrained=False),
            data,
            self.recipe,
            self.task.threat,
            folder=None if folder is None else folder / "checkpoints",
            seed=self.teacher.seed,
            on_epoch=lambda record: report_epoch(record.curve_point()),
        )
        if folder is not None:
            save_weights(result.model, folder / "weights.safetensors", {"phase": self.phase})
        return result.model, [dataclasses.asdict(record) for record in result.history]
