"""``nni-robust compress``: a network below a teacher that keeps a budget, without a search."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import add_json, add_seed, positive, writable_folder
from nni_robust.cli._console import print_json, print_table, say, thousands
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.architecture import Architecture
    from nni_robust.architecture.scaling import Below
    from nni_robust.task import Budget, Task

__all__ = ["add_arguments", "execute"]

#: Drawn from a policy, of which it proposes the best.
_DRAWS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Choose depths and widths below a teacher's so that the network keeps a budget: by a "
        "policy that a search has learned, else by a rule. Nothing is trained. Costs are exact."
    )
    parser.add_argument(
        "teacher",
        nargs="?",
        metavar="TEACHER",
        help="a name that 'nni-robust archs' lists, an architecture file, or a model file of the "
        "authors of wide residual networks (default: the task's teacher)",
    )
    parser.add_argument(
        "--task",
        metavar="NAME|FILE",
        help="what the network is for: cifar10/wrn-28-10/pgd20, … (a wrong name lists them), a "
        "task file, or a teacher's file alone, such as WRN-A1.yaml",
    )
    parser.add_argument(
        "--budget",
        metavar="MACS",
        help="most MACs for one picture, such as 5G (default: the task's)",
    )
    parser.add_argument("--max-params", metavar="N", help="most parameters, such as 20M")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="T",
        help="share by which the budget may be exceeded (default 0)",
    )
    parser.add_argument(
        "--policy", metavar="DIR", help="folder with the policy that a search exported"
    )
    parser.add_argument(
        "--draws",
        type=positive,
        default=_DRAWS,
        metavar="N",
        help=f"with --policy: networks drawn to choose from (default {_DRAWS})",
    )
    parser.add_argument(
        "--rule",
        choices=("scaling", "last-stage"),
        help="without a policy: depths 2:2:1 and widths 2:2.5:1 as in WRN-A1 to A4 (scaling, "
        "default), or take from the last stage first",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="the teacher's weights (default: its file's own, if any)"
    )
    parser.add_argument(
        "--inherit",
        choices=("magnitude", "first"),
        default="magnitude",
        help="which channels keep their weights: those of the largest weights (default), or the "
        "first ones",
    )
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="give the cut network batch-norm statistics of its own, from training pictures of the "
        "task (the teacher's leave it near chance)",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="architecture file to write (.yaml, .yml or .json); weights go beside it",
    )
    add_seed(parser)
    add_json(parser)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A chosen network, the space it is from, and how it was found, as JSON and in words."""

    below: Below
    sample: dict[str, Any]
    how: dict[str, Any]
    words: str


def execute(args: argparse.Namespace) -> int:
    """Choose the network, say what it keeps, and write what was asked for."""
    out = _output(args)
    from nni_robust.architecture import load_architecture
    from nni_robust.tasks import load_task_file, task_shape

    task = None if args.task is None else load_task_file(args.task)
    name = args.teacher or (task.teacher.architecture if task and task.teacher else None)
    if name is None:
        raise UserError("no teacher is given, and the task names none; give TEACHER")
    teacher = load_architecture(name)
    if task is None and args.policy is not None:
        task = load_task_file(name)  # a policy needs one; this is that of the teacher alone
    if task is not None:
        classes, shape = task_shape(task)
        teacher = dataclasses.replace(teacher, num_classes=classes, input_shape=shape)
    budget = _budget(args, task)
    if args.policy is None or task is None:
        chosen = _by_rule(args.rule or "scaling", teacher, budget)
    else:
        chosen = _by_policy(args, teacher, name, task, budget)
    below = chosen.below
    student = dataclasses.replace(
        teacher,
        name=_name(teacher, budget),
        space_args=below.space_args,
        sample=chosen.sample,
        weights=None,
        provenance={
            "kind": "found",
            "source": f"nni-robust compress, {chosen.words}",
            "note": _note(teacher),
        },
    )
    weights = args.weights or teacher.weights
    if weights is None and args.teacher is None and task is not None and task.teacher is not None:
        weights = task.teacher.weights
    untuned = weights is not None and out is not None
    if args.recalibrate and not (untuned and args.task):
        raise UserError(
            "--recalibrate needs -o, a teacher with weights, and a --task whose data can be read"
        )
    if out is not None:
        student = _write(student, teacher, below, weights, args, out, task)
    about = _about(teacher, student, below, budget, chosen.how)
    if args.json:
        written = {"file": args.out, "weights": str(student.weights) if untuned else None}
        print_json(about | written | {"untuned": untuned})
        return 0
    _print(about)
    if out is not None:
        print(f"wrote {out}" + (f" and {student.weights}" if untuned else ""))
    if untuned:
        say(
            "the weights are the teacher's, cut to size and untuned: train before you trust any "
            "accuracy"
        )
    return 0


def _output(args: argparse.Namespace) -> Path | None:
    """The file to write; refuses combinations that make no sense."""
    if args.policy is not None and args.rule is not None:
        raise UserError("--policy and --rule exclude each other")
    if args.out is None:
        if args.weights is not None:
            raise UserError("--weights needs -o: the cut weights go beside the architecture file")
        return None
    out = Path(args.out)
    if out.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"-o '{out}': an architecture is saved as .yaml, .yml or .json")
    writable_folder(str(out.parent))
    return out


def _budget(args: argparse.Namespace, task: Task | None) -> Budget:
    from nni_robust.config import parse
    from nni_robust.task import Budget

    given = {"macs": args.budget, "params": args.max_params}
    if not any(given.values()):
        if task is None or task.budget is None:
            raise UserError(
                "no budget is given; --budget 5G, --max-params 20M or a --task with one is"
            )
        given = {"macs": task.budget.macs, "params": task.budget.params}
    return parse(Budget, {**given, "tolerance": args.tolerance}, "--budget")


def _by_rule(rule: str, teacher: Architecture, budget: Budget) -> _Choice:
    from nni_robust.architecture.scaling import below_teacher, scale_down

    below = below_teacher(teacher)
    return _Choice(below, scale_down(below, budget, rule), {"rule": rule}, f"rule {rule}")


def _by_policy(
    args: argparse.Namespace, teacher: Architecture, name: str, task: Task, budget: Budget
) -> _Choice:
    """A policy decides on the type of block of a stage where it has learned to."""
    from nni_robust.architecture.scaling import below_teacher, check_budget
    from nni_robust.policy import load_policy
    from nni_robust.teacher import Teacher

    policy = load_policy(args.policy)
    blocks = any(choice.label.endswith("/block") for choice in policy.choices)
    below = below_teacher(teacher, search_blocks=blocks)
    check_budget(below, budget)
    task = dataclasses.replace(task, teacher=Teacher(name))
    sample = policy.propose(below.space, task, budget, seed=args.seed, draws=args.draws)
    how = {"policy": args.policy, "draws": args.draws, "seed": args.seed}
    words = f"policy {args.policy}, seed {args.seed}, {args.draws} draws"
    return _Choice(below, dict(sample), how, words)


def _name(teacher: Architecture, budget: Budget) -> str:
    """``wrn-28-10-2g``."""
    limit = budget.macs if budget.macs is not None else budget.params or 0.0
    for unit, size in (("g", 1e9), ("m", 1e6), ("k", 1e3)):
        if limit >= size:
            return f"{teacher.name}-{limit / size:g}{unit}"
    return f"{teacher.name}-{limit:g}"


def _note(teacher: Architecture) -> str:
    return f"Compressed from {teacher.name}, code {teacher.code()}."


def _write(
    student: Architecture,
    teacher: Architecture,
    below: Below,
    weights: str | Path | None,
    args: argparse.Namespace,
    out: Path,
    task: Task | None,
) -> Architecture:
    """Save the architecture, with the teacher's weights cut to size where there are any."""
    if weights is not None:
        from nni_robust.training import load_weights, save_weights

        network = teacher.build(pretrained=False)
        load_weights(network, weights)
        cut = below.space.inherit(student.sample, network, channels=args.inherit)
        if args.recalibrate and task is not None:
            from nni_robust.data import load_task
            from nni_robust.training.batchnorm import recalibrate_bn

            recalibrate_bn(cut, load_task(task), seed=args.seed)
        file = out.with_suffix(".safetensors")
        save_weights(cut, file, {"teacher": str(weights), "inherit": args.inherit})
        note = f"{student.provenance['note']} Weights cut from the teacher's, untuned"
        note += "; batch-norm statistics recalibrated." if args.recalibrate else "."
        student = dataclasses.replace(
            student, weights=file, provenance={**student.provenance, "note": note}
        )
    student.save(out)
    return student


def _about(
    teacher: Architecture,
    student: Architecture,
    below: Below,
    budget: Budget,
    how: dict[str, Any],
) -> dict[str, Any]:
    from nni_robust.analysis.compression import keep_ratios

    was, now = below.cost(below.teacher), below.cost(student.sample)
    return {
        "name": student.name,
        "code": student.code(),
        "sample": student.sample,
        "how": how,
        "budget": {"macs": budget.macs, "params": budget.params, "tolerance": budget.tolerance},
        "num_classes": student.num_classes,
        "input_shape": list(student.input_shape),
        "macs": now.macs,
        "params": now.params,
        "teacher": {
            "name": teacher.name,
            "code": teacher.code(),
            "macs": was.macs,
            "params": was.params,
        },
        "stages": [
            {
                **dataclasses.asdict(stage),
                "keep_depth": stage.keep_depth,
                "keep_width": stage.keep_width,
            }
            for stage in keep_ratios(student.sample, below.space)
        ],
    }


def _print(about: dict[str, Any]) -> None:
    how = ", ".join(f"{key} {value}" for key, value in about["how"].items())
    shape = "×".join(map(str, about["input_shape"]))
    print(f"{about['name']}: {about['code']} ({how})")
    rows = [
        [f"stage {s['stage']}", f"{s['depth']} of {s['teacher_depth']}",
         f"{s['width']} of {s['teacher_width']}", s["block"]]
        for s in about["stages"]
    ]  # fmt: skip
    print_table(["", "depth", "width", "block"], rows)
    teacher = about["teacher"]
    print_table(
        ["", "parameters", f"MACs ({shape})"],
        [
            [teacher["name"], thousands(teacher["params"]), thousands(teacher["macs"])],
            [about["name"], thousands(about["params"]), thousands(about["macs"])],
        ],
    )
