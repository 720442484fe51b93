"""How often NNI 3.0 hands a trial another trial's parameters, with and without our channel.

``python experiments/benchmarks/pairs.py --experiments 10 [--without]``: random searches with four
trials at a time that only look results up, so that they start together. NNI issue 5693.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sqlite3
import tempfile
from pathlib import Path

import yaml

from nni_robust.experiments import run_experiment
from nni_robust.nni_adapter import experiment

SEARCH = {
    "task": {"dataset": "blank", "threat": {"eps": "8/255"}, "attack": "pgd20"},
    "space": {
        "name": "wide-resnet",
        "depths": [11, 11, 11],
        "widths": [16, 16, 16],
        "depth_values": [4, 5, 7, 9, 11],
        "width_values": [8, 10, 12, 14, 16],
    },
    "strategy": {"name": "random"},
    "evaluator": {"name": "tabular", "table": "synthetic:wrn", "as_trials": True},
    "final": None,
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def count(run: Path) -> tuple[int, int]:
    """Trials with a result, and those that reported for another parameter than recorded."""
    (database,) = (p for p in run.glob("nni/*/db/nni.sqlite") if not p.parents[1].is_symlink())
    with contextlib.closing(sqlite3.connect(database)) as connection:
        recorded = {
            trial: json.loads(data)["parameter_id"]
            for trial, data in connection.execute(
                "select trialJobId, data from TrialJobEvent where data <> ''"
            )
        }
        reported = connection.execute(
            "select trialJobId, parameterId from MetricData where type = 'FINAL'"
        ).fetchall()
    return len(reported), sum(recorded[trial] != int(number) for trial, number in reported)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=10)
    parser.add_argument("--without", action="store_true", help="NNI's own channel")
    args = parser.parse_args()
    if args.without:
        experiment.TRIAL_ENVIRONMENT = ""
    trials = swapped = affected = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder
        for seed in range(args.experiments):
            file = Path(folder, f"{seed}.yml")
            nni = {"concurrency": 4, "trials": 8, "port": free_port()}
            file.write_text(yaml.safe_dump({**SEARCH, "seed": seed, "nni": nni}))
            out = str(Path(folder, str(seed)))
            run = run_experiment(str(file), out=out, report=lambda line: None, html=False)
            n, wrong = count(run)
            trials, swapped, affected = trials + n, swapped + wrong, affected + (wrong > 0)
            print(f"seed {seed}: {wrong} of {n} swapped", flush=True)
    print(f"{affected} of {args.experiments} experiments, {swapped} of {trials} trials swapped")


if __name__ == "__main__":
    main()
