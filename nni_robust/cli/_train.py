"""``nni-robust train``: adversarial training of one architecture."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import (
    ARCH_HELP,
    add_data,
    add_json,
    add_overrides,
    add_seed,
    add_threads,
    add_threat,
    assignments,
    refuse_given,
    set_threads,
    threat_of,
    writable_folder,
)
from nni_robust.cli._console import print_json, progress, say
from nni_robust.cli._evaluate import add_attacks, fill_attacks, names
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.architecture import Architecture
    from nni_robust.data import DataSplits
    from nni_robust.threat import ThreatModel
    from nni_robust.training import EpochRecord, Recipe, TrainResult

__all__ = ["add_arguments", "execute"]

#: What only a folder that this verb used before holds.
_TRACES = ("architecture.yaml", "result.json", "checkpoint-*.safetensors")
#: What attacks have found so far, until evaluation.json is written.
_PROGRESS = "evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Train an architecture from fresh weights, for the data's classes. Into DIR go "
        "architecture.yaml, weights.safetensors, log.jsonl and log.csv "
        "with a line per epoch, result.json, and checkpoints until it is done. The test pictures "
        "are opened only by --evaluate, whose figures go into evaluation.json with the checks of "
        "whether they can be believed."
    )
    parser.add_argument("arch", metavar="ARCH", help=ARCH_HELP)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--resume", action="store_true", help="continue the same training in its folder"
    )
    add_data(parser)
    add_threat(parser, "the recipe's, else 8/255")
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="a recipe that 'nni-robust recipes' lists, or a YAML file of training settings "
        "(default: PGD-10, Madry)",
    )
    parser.add_argument(
        "--teacher",
        metavar="ARCH",
        help="a trained network to learn from: an architecture file with weights, or "
        "robustbench:NAME; for the losses rslad and ard, and for distillation",
    )
    parser.add_argument(
        "--teacher-weights", metavar="FILE", help="its weights, where ARCH has none"
    )
    add_overrides(parser, "training setting, such as epochs=20 or attack.steps=7")
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="NAME",
        help="also write the curve to 'tensorboard' (event files in DIR/tensorboard) or 'mlflow' "
        "($MLFLOW_TRACKING_URI, else DIR/mlflow.db); may be repeated",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="attack the result on the test pictures at the end"
    )
    add_attacks(parser)
    add_threads(parser)
    add_seed(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Check everything, train, save, and attack the result where that was asked for."""
    changes = assignments(args.overrides)
    if not args.evaluate:
        refuse_given(args, ("--attacks", "--limit", "--batch-size"), "needs --evaluate")
    fill_attacks(args)
    from nni_robust.architecture import load_architecture
    from nni_robust.attacks import attack_from_spec
    from nni_robust.cli._network import build_network, threat_json
    from nni_robust.config import parse
    from nni_robust.data import load_dataset
    from nni_robust.training import (
        Recipe,
        TrainingDiverged,
        check_logs,
        load_recipe,
        open_logs,
        train,
    )

    set_threads(args)
    if args.recipe is None:
        recipe, threat = parse(Recipe, changes, "recipe"), threat_of(args)
    else:
        named = load_recipe(args.recipe, changes)
        recipe, threat = named.recipe, threat_of(args, named.threat)
    if recipe.epochs < 1:
        raise UserError(
            "epochs: 0 is not allowed here, where it would save fresh weights as trained ones; a "
            "whole number >= 1 is"
        )
    for name in names(args.attacks) if args.evaluate else ():
        attack_from_spec(name, threat)
    check_logs(args.log, "--log")
    architecture = load_architecture(args.arch)
    # A folder without test pictures is told now, not after the training.
    data = load_dataset(args.dataset, root=args.root, test=args.evaluate)
    network = build_network(architecture, data, seed=args.seed, pretrained=False)
    teacher = _teacher(args, data)
    folder = _folder(args)
    line = say if args.json else print
    with progress("training", recipe.epochs) as advance:

        def on_epoch(record: EpochRecord) -> None:
            advance(record.epoch)
            line(_epoch_line(record, recipe.epochs))

        try:
            result = train(
                network,
                data,
                recipe,
                threat,
                folder=folder,
                seed=args.seed,
                on_epoch=on_epoch,
                teacher=teacher,
                logs=open_logs(args.log, folder),
            )
        except TrainingDiverged as e:
            say(f"error: {e}")
            return 1
    if not _is_first_process():
        return 0
    trained = _trained(architecture, data, threat, recipe, folder, args.seed, result.kept_epoch)
    trained.save(folder / "architecture.yaml")
    outcome = {
        "folder": str(folder),
        "architecture": str(folder / "architecture.yaml"),
        "threat": threat_json(threat),
        "history": [dataclasses.asdict(record) for record in result.history],
        "seconds": result.seconds,
        "kept_epoch": result.kept_epoch,
    }
    if recipe.keep == "best":
        line(f"kept epoch {result.kept_epoch}, the best by robust validation accuracy")
    line(f"saved {folder / 'architecture.yaml'} and its weights")
    if args.evaluate:
        outcome["test"] = _test(args, result, data, threat, folder, trained.name)
    if args.json:
        print_json(outcome)
    return 0


def _teacher(args: argparse.Namespace, data: DataSplits) -> Any:
    """The trained network to learn from; None without one."""
    from nni_robust.teacher import Teacher, load_teacher

    if args.teacher is None:
        if args.teacher_weights is not None:
            raise UserError("--teacher-weights is not allowed without --teacher")
        return None
    teacher = Teacher(args.teacher, weights=args.teacher_weights)
    return load_teacher(teacher, data.num_classes, data.input_shape)


def _is_first_process() -> bool:
    """Whether this is not one of the copies of the program that Fabric's ``ddp`` starts."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _folder(args: argparse.Namespace) -> Path:
    folder = writable_folder(args.out)
    used = any(any(folder.glob(trace)) for trace in _TRACES)
    if used and not args.resume and _is_first_process():
        raise UserError(
            f"--out '{args.out}' holds a training; add --resume to continue it, or choose another"
        )
    if args.resume and not used:
        raise UserError(f"nothing to resume: '{args.out}' holds no training")
    return folder


def _epoch_line(record: EpochRecord, epochs: int) -> str:
    accuracies = {
        "train robust": record.train_robust,
        "validation clean": record.val_clean,
        "validation robust": record.val_robust,
    }
    shown = [f"{name} {value:.2%}" for name, value in accuracies.items() if value is not None]
    width = len(str(epochs))
    return (
        f"epoch {record.epoch:>{width}}/{epochs}  loss {record.loss:.4f}  lr {record.lr:.4g}  "
        f"{'  '.join(shown)}  {record.seconds:.1f} s"
    )


def _trained(
    architecture: Architecture,
    data: DataSplits,
    threat: ThreatModel,
    recipe: Recipe,
    folder: Path,
    seed: int,
    epochs: int,
) -> Architecture:
    """The same architecture with the new weights, and a note on what they are."""
    note = (
        f"Weights: {epochs} epochs of '{recipe.loss}' on {data.name} against {threat}, "
        f"seed {seed}, by nni-robust train."
    )
    before = architecture.provenance.get("note")
    return dataclasses.replace(
        architecture,
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        weights=folder / "weights.safetensors",
        provenance={**architecture.provenance, "note": f"{before} {note}" if before else note},
    )


def _test(
    args: argparse.Namespace,
    trained: TrainResult,
    data: DataSplits,
    threat: ThreatModel,
    folder: Path,
    name: str,
) -> dict[str, Any]:
    """Attack the result, and keep the figures with their flags as ``evaluate --json`` tells them.

    They lie beside the weights, where ``show`` and ``export`` find them.
    """
    from nni_robust._files import write_json
    from nni_robust.cli._network import attack_and_count, print_accuracies, threat_json
    from nni_robust.evaluation import progress_folder
    from nni_robust.exchange import EVALUATION
    from nni_robust.reliability import check_training

    result = attack_and_count(
        trained.model,
        data.test,
        names(args.attacks),
        threat,
        batch_size=args.batch_size,
        limit=args.limit,
        seed=args.seed,
        folder=progress_folder(folder / _PROGRESS, trained.model),
    )
    kept = trained.history[: trained.kept_epoch]
    history = [dataclasses.asdict(record) for record in kept]
    collapse = check_training(history, data.num_classes)
    result = result.with_checks([collapse])
    if not args.json:
        print(f"{result.n} test pictures of {data.name}, {threat}")
        print_accuracies(result)
    figures = {
        "pictures": result.n,
        "metrics": result.metrics(),
        "reliability": result.reliability.as_dict(),
    }
    record = {
        "architecture": name,
        "trained": True,
        "dataset": data.name,
        "split": "test",
        "threat": threat_json(threat),
        "seed": args.seed,
        **figures,
        "all_attacks": result.worst,
        "seconds": result.seconds,
    }
    write_json(folder / EVALUATION, record)
    shutil.rmtree(folder / _PROGRESS, ignore_errors=True)
    return figures
