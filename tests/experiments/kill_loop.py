"""Kill experiments again and again, at random moments, and look at what is left.

    python kill_loop.py FOLDER KILLS SEED CASE [CASE ...]

Each case is run once without a kill, then with SIGKILLs until it has had KILLS of them (in as many
run folders as that takes). One JSON line per case says what was found. Every run is a fork of this
process, which has imported torch and NNI: so a start costs little, and no run sees another's state.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

TRAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 32,
    "lr": 0.05,
    "attack": {"steps": 1},
    "validation_attack": None,
    "checkpoint_steps": 1,
}
DIGITS: dict[str, Any] = {"threat": {"eps": 0.1}, "train_limit": 96, "validation_limit": 32}
ROBNET: dict[str, Any] = {"name": "robnet", "init_channels": 2, "cells": 3}
SCORER: dict[str, Any] = {
    "name": "adversarial-training",
    "train": TRAIN,
    "attacks": ["fgsm"],
    "recalibrate_batches": 1,
}
TABLE: dict[str, Any] = {
    "task": {"dataset": "blank", "threat": {"eps": "8/255"}, "attack": "pgd20"},
    "space": {
        "name": "wide-resnet",
        "depths": [11, 11, 11],
        "widths": [16, 16, 16],
        "depth_values": [4, 5, 7, 9, 11],
        "width_values": [8, 10, 12, 14, 16],
    },
    "evaluator": {"name": "tabular", "as_trials": True},
}
TEACHER = {"architecture": "wrn-16-1", "train": {**TRAIN, "epochs": 1, "loss": "clean"}}

CASES: dict[str, dict[str, Any]] = {
    "random": {
        "task": DIGITS,
        "space": ROBNET,
        "strategy": "random",
        "evaluator": SCORER,
        "nni": {"trials": 4},
    },
    "regularized-evolution": {
        **TABLE,
        "strategy": {"name": "regularized-evolution", "population_size": 5, "sample_size": 3},
        "nni": {"trials": 40},
    },
    "robust-one-shot": {
        "task": {**DIGITS, "test_limit": 32},
        "space": ROBNET,
        "strategy": {"name": "robust-one-shot", "candidates": 3, "supernet": TRAIN},
        "evaluator": SCORER,
        "final": {
            "train": TRAIN,
            "attacks": ["fgsm"],
            "eps_factors": [0, 1],
            "steps": [1, 3],
            "corruptions": ["contrast", "pixelate"],
            "rivals": [],
        },
    },
    "rl-compressor": {
        **TABLE,
        "strategy": {"name": "rl-compressor", "updates": 8, "rollouts": 4},
    },
    "cross-layer-distillation": {
        "task": {**DIGITS, "teacher": TEACHER},
        "space": {
            "name": "inverted-residual",
            "preset": None,
            "stages": [
                {"blocks": 1, "widths": [8, 4]},
                {"blocks": 1, "widths": [8, 6, 4], "stride": 2},
            ],
            "stem_channels": 4,
            "stem_stride": 1,
        },
        "strategy": {
            "name": "cross-layer-distillation",
            "search": {"weights": {"epochs": 2, "batch_size": 24, "lr": 0.05}, "maps": {"size": 4}},
        },
        "evaluator": SCORER,
    },
    "wide-spectrum": {
        "task": DIGITS,
        "space": {"name": "darts", "width": 4, "cells": 3},
        "strategy": {
            "name": "wide-spectrum",
            "candidates": 2,
            "epochs": 2,
            "warmup": {"archs": 2},
            "objective": {"strengths": [0.05, 0.1, 0.15], "weights": [1, 2, 3]},
            "measure": {"steps": 1, "pictures": 24, "recalibrate_batches": 1},
            "supernet": {k: v for k, v in TRAIN.items() if k != "epochs"},
        },
        "evaluator": {**SCORER, "attacks": ["pgd3"], "strengths": [0.05, 0.1, 0.15]},
    },
}


def start(file: Path, run: Path) -> int:
    """Fork a process that runs or resumes; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from nni_robust.experiments import run_experiment

        run_experiment(str(file), out=str(run), resume=run.exists(), html=False)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def unreadable(run: Path) -> list[str]:
    """Files that other programs could not read. A log's last line may lack its end."""
    found = []
    for path in sorted(run.rglob("*")):
        if not path.is_file() or path.name.endswith(".tmp"):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                for line in path.read_bytes().split(b"\n")[:-1]:
                    json.loads(line)
            elif path.suffix == ".yaml":
                yaml.safe_load(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "np") as f:
                    for name in f.keys():  # noqa: SIM118
                        f.get_tensor(name)
        except FileNotFoundError:
            continue
        except Exception as e:
            found.append(f"{path.relative_to(run)}: {type(e).__name__}: {e}")
        if ".damaged" in path.name:
            found.append(f"{path.relative_to(run)} was set aside")
    return found


def scrubbed(value: Any) -> Any:
    """Without what depends on when and how fast something ran."""
    if isinstance(value, dict):
        return {k: scrubbed(v) for k, v in value.items() if "seconds" not in k}
    return [scrubbed(v) for v in value] if isinstance(value, list) else value


def outcome(run: Path) -> dict[str, Any]:
    """All that a run made, besides how it went."""
    found: dict[str, Any] = {}
    for path in sorted(run.iterdir()):
        if path.suffix == ".json" and path.name != "run.json":
            found[path.name] = scrubbed(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            found[path.name] = [scrubbed(json.loads(line)) for line in lines]
        elif path.suffix == ".yaml":
            found[path.name] = path.read_text()
        elif path.suffix == ".safetensors":
            with safe_open(path, "np") as f:
                found[path.name] = {n: f.get_tensor(n).tobytes() for n in f.keys()}  # noqa: SIM118
    return found


def records(run: Path) -> dict[str, int]:
    """When each finished trial was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in run.glob("store/*/record.json")}


def case(name: str, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Run a case whole, then killed; what was found."""
    folder.mkdir(parents=True)
    settings = {"name": name, "seed": 3, "final": None, **CASES[name]}
    settings["nni"] = {"engine": "sequential", **settings.get("nni", {})}
    file = folder / f"{name}.yml"
    file.write_text(yaml.safe_dump(settings))
    whole = folder / "whole"
    began = time.monotonic()
    _, how = os.waitpid(start(file, whole), 0)
    duration = time.monotonic() - began
    problems = (
        [] if how == 0 else [f"the whole run failed: {whole.with_suffix('.log').read_text()}"]
    )
    expected = outcome(whole) if how == 0 else {}
    done, rounds, after = 0, 0, []
    while done < kills and not problems:
        rounds += 1
        run, finished, ended = folder / f"killed-{rounds}", {}, False
        while not ended and not problems:
            child = start(file, run)
            # Not more kills than asked for: the last run goes to its end.
            wait = rng.uniform(0, duration) if done < kills else None
            ended, how = wait_or_kill(child, wait)
            if not ended:
                done += 1
                after.append(len(records(run)))
            elif how != 0:
                log = run.with_suffix(".log").read_text()
                problems.append(f"killed-{rounds} was not resumed: {log}")
            problems += unreadable(run) if run.exists() else []
            now = records(run)
            again = sorted(k for k, when in finished.items() if now.get(k) != when)
            problems += [f"killed-{rounds}: {key} was computed again" for key in again]
            finished = now
        if problems:
            break
        left = [str(p.relative_to(run)) for p in run.rglob(".*.tmp")]
        problems += [f"killed-{rounds}: {p} was left" for p in left]
        found = outcome(run)
        for made in sorted({*expected, *found}):
            if expected.get(made) != found.get(made):
                problems.append(f"killed-{rounds}: {made} is not that of the whole run")
    return {
        "case": name,
        "kills": done,
        "runs": rounds,
        "trials": len(records(whole)),
        "seconds": round(duration, 2),
        "finished_at_kill": after,
        "problems": problems,
    }


def wait_or_kill(child: int, seconds: float | None) -> tuple[bool, int]:
    """Whether a process ended by itself before so many seconds, and how."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        pid, how = os.waitpid(child, os.WNOHANG)
        if pid:
            return True, how
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, how = os.waitpid(child, 0)
    return not os.WIFSIGNALED(how), how


def main(folder: str, kills: str, seed: str, *names: str) -> None:
    import sklearn.datasets  # noqa: F401
    import torch

    import nni_robust.evaluators
    import nni_robust.experiments._search
    import nni_robust.nni_adapter.experiment
    import nni_robust.search_spaces
    import nni_robust.strategies  # noqa: F401

    torch.set_num_threads(1)
    for number, name in enumerate(names):
        rng = random.Random(f"{seed} {name}")
        print(json.dumps(case(name, Path(folder, str(number)), int(kills), rng)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
