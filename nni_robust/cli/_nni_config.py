"""``nni-robust nni-config``: an experiment file as a configuration for ``nnictl create``."""

from __future__ import annotations

import argparse
import shlex

from nni_robust.cli._arguments import add_json, add_overrides
from nni_robust.cli._console import print_json

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Make a run folder with an NNI configuration, for those who start and watch experiments "
        "with nnictl. 'nnictl create' then runs the same search as 'nni-robust run': the same "
        "architectures under the same seed, the same run folder and report."
    )
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="name of a shipped experiment, or a YAML file"
    )
    parser.add_argument("--out", metavar="DIR", help="run folder (default: one below ./runs)")
    parser.add_argument(
        "--registered",
        action="store_true",
        help="name the tuner as 'nnictl algo register --meta DIR/algo.yml' registers it",
    )
    add_overrides(parser, "setting of the file")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Write the configuration and say how to start it."""
    from nni_robust.experiments import load_experiment
    from nni_robust.experiments.nnictl import write_nni_config

    path = write_nni_config(
        args.experiment, out=args.out, overrides=args.overrides, registered=args.registered
    )
    port = load_experiment(str(path.parent / "config.yaml")).nni.port
    command = ["nnictl", "create", "--config", str(path), "--port", str(port)]
    if args.json:
        print_json({"folder": str(path.parent), "config": str(path), "command": command})
    else:
        print(f"start it with: {shlex.join(command)}")
    return 0
