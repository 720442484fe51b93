"""Recipes, attacks and the final phase, checked against data, threat, teacher and machine.

Each of these would be told by the trial that needs it, hours later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from nni_robust import registry
from nni_robust._pictures import make_attacks
from nni_robust.attacks import scoring_attacks
from nni_robust.corruptions import corrupt, names_of
from nni_robust.data import DataSplits
from nni_robust.errors import UserError
from nni_robust.training import Recipe, check_recipe, in_section, parse_recipe

from ._final import final_evaluator
from ._trials import platform
from .schema import Experiment, Final

__all__ = ["check_settings"]

#: Who gets the tutors of a strategy that has any.
_TUTORED = ("candidate", "final")


def check_settings(experiment: Experiment, evaluator: Any, strategy: Any, data: DataSplits) -> None:
    """Refuse what a training, an attack or the final phase would refuse later.

    Parameters
    ----------
    experiment
        The whole file.
    evaluator, strategy
        Made from it.
    data
        Of its task, without the test split.

    Raises
    ------
    UserError
        On the first problem, naming the section and the key.
    """
    _check_attacks("evaluator.attacks", getattr(evaluator, "attacks", []), experiment)
    for where, recipe, use in _recipes(experiment, evaluator, strategy):
        _check_recipe(where, recipe, use, experiment, data)
        if recipe.replays > 1 and getattr(strategy, "adds_to_loss", False) and use in _TUTORED:
            raise UserError(
                f"{where}.replays: {recipe.replays} is not allowed with strategy "
                f"'{experiment.strategy.name}', which adds to the loss; 1 is"
            )
    if experiment.final is not None and hasattr(evaluator, "variant"):
        _check_final(experiment, experiment.final, evaluator, strategy, data)


def _recipes(
    experiment: Experiment, evaluator: Any, strategy: Any
) -> Iterator[tuple[str, Recipe, str]]:
    """Section, recipe, and who is trained by it."""
    own = getattr(evaluator, "recipe", None)
    if isinstance(own, Recipe):
        yield "evaluator.train", own, "candidate"
    taken = registry.constructor_arguments(registry.strategies.get(experiment.strategy.name))
    if "supernet" in (taken or ()):
        supernet = getattr(strategy, "recipe", None)
        if isinstance(supernet, Recipe):
            yield "strategy.supernet", supernet, "supernet"
        elif isinstance(own, Recipe):
            last = dataclasses.replace(own, keep="last", patience=None)
            yield "evaluator.train", last, "supernet"
    teachers = [("task.teacher", experiment.task.teacher)]
    teachers += [
        (f"strategy.teachers.{place}", teacher)
        for place, teacher in enumerate(getattr(strategy, "teachers", None) or [])
    ]
    for where, teacher in teachers:
        settings = getattr(teacher, "train", None)
        if settings is not None:
            yield f"{where}.train", parse_recipe(settings, f"{where}.train"), "teacher"
    if experiment.final is not None and hasattr(evaluator, "variant"):
        yield "final.train", experiment.final.train, "final"


def _check_recipe(
    where: str, recipe: Recipe, use: str, experiment: Experiment, data: DataSplits
) -> None:
    try:
        # A supernet's trial does not validate: the accuracy of one path says little.
        check_recipe(recipe, data, experiment.task.threat, validate=use != "supernet")
        _check_machine(recipe, experiment)
        if use == "supernet" and recipe.attack.compile:
            raise UserError(
                "attack.compile: true is not allowed for a supernet, each path of which would be "
                "compiled; attack.cuda_graph is"
            )
        if use in ("supernet", "teacher") and recipe.needs_teacher:
            key = "loss" if recipe.distillation is None else "distillation"
            raise UserError(f"{key}: a {use} has no teacher to learn from")
    except UserError as e:
        raise in_section(where, e) from None


def _check_machine(recipe: Recipe, experiment: Experiment) -> None:
    """Refuse devices that local trials do not have; of other machines nothing is known here."""
    if recipe.devices != "auto" and recipe.batch_size % recipe.devices:
        raise UserError(
            f"batch_size: {recipe.batch_size} is not allowed with {recipe.devices} devices; "
            "a multiple of their number is"
        )
    trials = experiment.nni.engine == "ts"
    if trials and platform(experiment) != "local":
        return
    there = torch.cuda.is_available()
    if there and (experiment.nni.trial_gpus or not trials):
        return
    why = "nni.trial_gpus is 0, which hides the GPUs" if there else "this machine has no GPU"
    if recipe.accelerator in ("gpu", "cuda"):
        raise UserError(f"accelerator: {recipe.accelerator!r} is not allowed; {why}")
    if recipe.attack.cuda_graph is True:
        raise UserError(f"attack.cuda_graph: true is not allowed; {why} ('auto' is)")


def _check_attacks(where: str, specs: list[Any], experiment: Experiment) -> None:
    """Refuse attacks that do not exist, are targeted, or have one name."""
    try:
        make_attacks(specs, experiment.task.threat)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None


def _check_final(
    experiment: Experiment, final: Final, evaluator: Any, strategy: Any, data: DataSplits
) -> None:
    task = experiment.task
    try:
        specs = scoring_attacks(final.attacks, None, task.threat)
    except UserError as e:
        said = str(e).removeprefix("evaluator.attacks: ")
        raise UserError(f"final.attacks: {said}") from None
    _check_attacks("final.attacks", specs, experiment)
    if final.corruptions:
        x, _ = next(data.train.head(1).batches(1))
        try:
            for name in names_of(final.corruptions):
                corrupt(x, name, 5)
        except UserError as e:
            raise UserError(f"final.corruptions: {e}") from None
    # A strategy with teachers gives the final networks the first.
    teachers = getattr(strategy, "teachers", None) or []
    if final.train.needs_teacher and task.teacher is None and not teachers:
        key = "distillation" if final.train.distillation is not None else "loss"
        value = "" if key == "distillation" else f": {final.train.loss!r}"
        raise UserError(f"final.train.{key}{value} is not allowed without task.teacher")
    learned = {}
    if task.teacher is None and teachers:
        learned["task"] = dataclasses.replace(task, teacher=teachers[0])
    try:
        for label in ("best", *final.rivals):
            final_evaluator(experiment, evaluator, label, learned)
    except TypeError as e:
        raise UserError(
            f"final is not allowed with evaluator '{experiment.evaluator.name}', which trains no "
            f"networks ({e}); final: null is"
        ) from None
