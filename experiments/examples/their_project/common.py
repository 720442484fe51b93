"""What the scripts share: spaces by name, the task, an experiment of NNI's."""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.hub.pytorch import NasBench201
from space import SmallSpace

#: Eight-by-eight digits, few of them: every script is over in seconds.
TASK: dict[str, Any] = {
    "dataset": "digits",
    "threat": {"norm": "linf", "eps": 0.1},
    "train_limit": 128,
    "validation_limit": 64,
}
#: One epoch of adversarial training.
TRAIN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 32,
    "lr": 0.05,
    "attack": {"steps": 2},
    "validation_attack": None,
}


def make_space(name: str) -> Any:
    """``own``: the space of this project; ``hub``: one from NNI's hub."""
    if name == "own":
        return SmallSpace(num_classes=10)
    return NasBench201(stem_out_channels=4, num_modules_per_stack=1, num_labels=10)


def read_arguments(about: str, **choices: list[str]) -> argparse.Namespace:
    """The options of a script; the first of each choice is the default."""
    parser = argparse.ArgumentParser(description=about)
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0])
    parser.add_argument("--engine", choices=["sequential", "ts"], default="sequential")
    parser.add_argument("--port", type=int, default=8080, help="of NNI's web UI, with ts")
    parser.add_argument("--store", help="where results are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    arguments.store = str(Path(arguments.store or tempfile.mkdtemp()).absolute())
    if arguments.engine == "ts":  # the folder that NNI sends to trials, where they find space.py
        os.chdir(Path(__file__).resolve().parent)
    return arguments


def run(space: Any, evaluator: Any, strategy: Any, trials: int, options: Any) -> dict[str, Any]:
    """Run NNI's plain experiment; returns the best architecture and its score."""
    config = NasExperimentConfig(options.engine, "simplified", "local")
    config.max_trial_number = trials
    config.trial_concurrency = 1
    if options.engine == "ts":
        config.trial_gpu_number = 0
        config.training_service.use_active_gpu = False
    experiment = NasExperiment(space, evaluator, strategy, config)
    try:
        experiment.run(port=options.port)
        models = list(strategy.list_models())
        return {"candidates": len(models), "best": models[0].sample, "score": models[0].metric}
    finally:
        experiment.stop()


def show(result: dict[str, Any]) -> None:
    """Print the result as the last line."""
    print(json.dumps(result))
