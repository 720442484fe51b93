"""``nni-robust export``: a trained network as a folder that others can load."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import add_json, add_threads, set_threads, writable_folder
from nni_robust.cli._console import print_json, say
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.exchange import Exported, Trained

__all__ = ["add_arguments", "execute"]

#: Real pictures that other forms are compared on.
_REAL = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Write a trained network in the layout of model hubs: model.safetensors, config.json with "
        "the architecture and the weights' sha256, a model card and the figures. The folder works "
        "wherever an architecture file does, and nni_robust.load(DIR) gives the network. Where an "
        "earlier export of the same weights lies, its other forms and figures stay; a card that "
        "was changed by hand is kept as README.md.before."
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_ARCHITECTURE",
        help="a run folder (its winner), a folder of 'train' or 'export', or an architecture file "
        "with weights",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="FILE",
        help="figures that 'evaluate --json' printed, to go into the card; may be repeated",
    )
    parser.add_argument(
        "--standalone",
        action="store_true",
        help="also network.py: one PyTorch file that builds and loads it without NNI and this "
        "package",
    )
    parser.add_argument(
        "--onnx", action="store_true", help="also model.onnx (pip install 'nni-robust[onnx]')"
    )
    parser.add_argument(
        "--torch-export", action="store_true", help="also model.pt2, for torch.export.load"
    )
    parser.add_argument(
        "--robustbench",
        action="store_true",
        help="also robustbench.json, an entry for RobustBench's leaderboard; needs AutoAttack on "
        "its full test set",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="whose pictures the other forms are compared on besides random ones (default: what "
        "the records say)",
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder of the data (default: $NNI_ROBUST_DATA, else ./data)"
    )
    add_threads(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Write the folder, and say what is in it."""
    from nni_robust.exchange import export_folder, read_trained, with_results

    set_threads(args)
    trained = with_results(read_trained(args.source), args.results)
    extras = [
        name
        for name, wanted in (
            ("onnx", args.onnx),
            ("torch-export", args.torch_export),
            ("standalone", args.standalone),
        )
        if wanted
    ]
    real, real_name = _real_pictures(args, trained) if extras else (None, "")
    made = not Path(args.to).exists()
    writable_folder(args.to, "--to")
    try:
        done = export_folder(
            trained,
            args.to,
            extras=extras,
            real=real,
            real_name=real_name,
            robustbench=args.robustbench,
        )
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                Path(args.to).rmdir()
        raise
    if args.json:
        print_json(
            {
                "folder": args.to,
                "architecture": trained.architecture.name,
                "files": done.files,
                "differences": done.differences,
                "compared_on": done.pictures,
                "robustbench": done.entry_belongs or None,
                "kept": done.kept,
                "removed": done.removed,
                "replaced": done.replaced or None,
                "saved": done.saved,
            }
        )
        return 0
    print(f"wrote {args.to}: {', '.join(done.files)}")
    for line in _of_earlier(done):
        print(line)
    for name, difference in done.differences.items():
        print(f"{name}: largest difference of a logit {difference:.1e} on {done.pictures}")
    if done.entry_belongs:
        print(
            f"robustbench.json belongs in {done.entry_belongs} of RobustBench; fill in what is "
            "marked there"
        )
    if not done.trained.evaluations:
        say("no figures are known; `nni-robust evaluate … --json` and --results add some")
    return 0


def _of_earlier(done: Exported) -> list[str]:
    """One line on what became of an earlier export's files, where there was something to tell."""
    parts = []
    if done.kept:
        parts.append(f"kept {', '.join(done.kept)}, of the same weights")
    if done.replaced:
        gone = f" and removed {', '.join(done.removed)}" if done.removed else ""
        parts.append(f"replaced '{done.replaced}', which had other weights{gone}")
    parts += [f"{old} had been changed and is now {new}" for old, new in done.saved.items()]
    return [f"earlier export: {'; '.join(parts)}"] if parts else []


def _real_pictures(args: argparse.Namespace, trained: Trained) -> tuple[Any, str]:
    """A few real pictures of the right size; None, with a word to the user, without any."""
    from nni_robust.data import load_dataset

    name = args.dataset or trained.dataset
    if name is None:
        say("compared on random pictures only: the records name no data set, and --dataset none")
        return None, ""
    try:
        data = load_dataset(name, root=args.root)
    except UserError as e:
        if args.dataset:
            raise
        say(f"compared on random pictures only: {e}")
        return None, ""
    shape = trained.architecture.input_shape
    if tuple(data.input_shape) != tuple(shape):
        size = "×".join(map(str, data.input_shape))
        if args.dataset:
            raise UserError(
                f"--dataset '{name}': pictures of {size} are not allowed; the network takes "
                f"{'×'.join(map(str, shape))}"
            )
        say(f"compared on random pictures only: those of '{name}' are {size}")
        return None, ""
    pictures, _ = next(iter(data.validation.batches(_REAL)))
    return pictures, name
