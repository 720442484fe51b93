"""Choose the verb, run it, and turn what went wrong into an exit code.

Exit codes: 0 done, 1 a check or a run failed, 2 the user asked for something impossible (one
sentence on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from nni_robust import __version__
from nni_robust._allocator import keep_freed_memory
from nni_robust.errors import DamageWarning, UserError

#: Verb -> (module, one line for ``nni-robust --help``).
VERBS = {
    "run": ("nni_robust.cli._run", "search for a robust architecture, as an experiment says"),
    "sweep": ("nni_robust.cli._sweep", "run an experiment under many settings and seeds"),
    "nni-config": ("nni_robust.cli._nni_config", "write the configuration for 'nnictl create'"),
    "train": ("nni_robust.cli._train", "train one architecture adversarially and keep its weights"),
    "recipes": ("nni_robust.cli._recipes", "list the ways to train, with their sources"),
    "evaluate": ("nni_robust.cli._evaluate", "attack one architecture and print its accuracies"),
    "transfer": ("nni_robust.cli._transfer", "attack networks with each other's examples"),
    "convert": ("nni_robust.cli._convert", "turn a foreign checkpoint into weights for evaluate"),
    "export": ("nni_robust.cli._export", "write a trained network as a folder others can load"),
    "compress": ("nni_robust.cli._compress", "find a network below a teacher that keeps a budget"),
    "archs": ("nni_robust.cli._archs", "list the known architectures with their exact costs"),
    "show": ("nni_robust.cli._show", "print what an architecture is; draw its cells"),
    "report": ("nni_robust.cli._report", "write the HTML report of a run folder"),
    "view": ("nni_robust.cli._view", "show a run that has ended in NNI's web UI"),
    "table": ("nni_robust.cli._table", "turn finished runs into a table to look up in"),
    "bench": ("nni_robust.cli._bench", "measure the library on this machine"),
    "doctor": ("nni_robust.cli._doctor", "check this machine and this installation"),
}


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser with every verb named; only the arguments of `verb` are filled in."""
    parser = argparse.ArgumentParser(
        prog="nni-robust",
        description="Search, train and attack adversarially robust networks, on NNI 3.0.",
        epilog="'nni-robust VERB --help' explains a verb.",
    )
    parser.add_argument("--version", action="version", version=f"nni-robust {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (module, summary) in VERBS.items():
        sub = verbs.add_parser(name, help=summary)
        if name == verb:
            import_module(module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    int
        The exit code. Wrong usage and ``--help`` leave through ``SystemExit``, as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The options before the verb take no values, so the first plain word is the verb.
    verb = next((word for word in arguments if not word.startswith("-")), None)
    args = build_parser(verb).parse_args(arguments)
    if argv is None and args.verb != "bench":  # there, rivals run as they come
        keep_freed_memory()
    try:
        with warnings.catch_warnings():
            # NNI wraps torch's layers on import and warns of two new names that are not layers.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"nni\..*")
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            warnings.simplefilter("always", DamageWarning)
            warnings.showwarning = _tell(warnings.showwarning)
            code: int = import_module(VERBS[args.verb][0]).execute(args)
        sys.stdout.flush()
        return code
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = ""
        if hasattr(args, "resume"):
            same = ["nni-robust", *arguments, *([] if args.resume else ["--resume"])]
            again = f"; continue with: {shlex.join(same)}"
        print(f"interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left (`nni-robust archs | head`): nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _tell(show: Callable[..., None]) -> Callable[..., None]:
    """Damage is told in one plain line, without the place in the code."""

    def tell(message: Any, category: type[Warning], *more: Any) -> None:
        if issubclass(category, DamageWarning):
            print(f"warning: {message}", file=sys.stderr, flush=True)
        else:
            show(message, category, *more)

    return tell
