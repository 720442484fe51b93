"""Smoke test of an installed wheel, from a folder that is not the checkout.

``python smoke.py --outside CHECKOUT`` in the environment of the wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# Counted by PyTorch's FlopCounterMode on the authors' code: parameters, MACs.
ROBNETS = {
    "robnet-small": (4359574, 664387200),
    "robnet-medium": (5614102, 848688768),
    "robnet-large": (6842710, 1030336128),
    "robnet-large-v2": (33326666, 5094615040),
    "robnet-free": (5439790, 780177024),
    "robnet-large-imagenet": (12756448, 1412137344),
}
EXPERIMENT = """
name: smoke
task: {dataset: digits, threat: {eps: 0.1}, train_limit: 256, validation_limit: 64}
space: {name: robnet, init_channels: 4, cells: 3}
strategy: {name: robust-one-shot, candidates: 2, supernet: {epochs: 1, attack: {steps: 1}}}
evaluator:
  name: adversarial-training
  train: {epochs: 1, attack: {steps: 1}}
  attacks: [fgsm]
final: {train: {epochs: 1, attack: {steps: 1}}, attacks: [fgsm], limit: 64, eps_factors: [0, 1]}
nni: {engine: sequential}
"""


def command(*argv: str) -> str:
    """Standard output of ``nni-robust``, the console script beside this Python."""
    script = Path(sys.executable).parent / "nni-robust"
    answer = subprocess.run([str(script), *argv], stdout=subprocess.PIPE, text=True, check=True)
    return answer.stdout


def says(text: str) -> None:
    print(f"- {text}", flush=True)


def package(outside: list[Path]) -> None:
    import nni_robust
    from nni_robust import evaluators, experiments, search_spaces, strategies

    for module in (nni_robust, evaluators, experiments, search_spaces, strategies):
        place = Path(str(module.__file__)).resolve()
        assert not any(place.is_relative_to(folder) for folder in outside), place
        assert place.is_relative_to(Path(sys.prefix).resolve()), place
    for name in ("attack", "evaluate", "list_architectures", "load_architecture"):
        assert callable(getattr(nni_robust, name))
    assert (Path(str(nni_robust.__file__)).parent / "py.typed").is_file()
    says(f"nni_robust {nni_robust.__version__} at {Path(str(nni_robust.__file__)).parent}")


def architectures() -> None:
    found = json.loads(command("archs", "robnet*", "--json"))
    counted = {e["name"]: (e["params"], e["macs"]) for e in found}
    assert {name: counted.get(name) for name in ROBNETS} == ROBNETS, found
    says("archs lists the six RobNets with their exact counts")
    answer = json.loads(command("evaluate", "robnet-small", "--limit", "8", "--json"))
    metrics = answer["metrics"]
    assert answer["pictures"] == 8
    assert answer["trained"] is False
    assert metrics["pgd20@8/255"] <= metrics["clean"] <= 1
    says(f"evaluate robnet-small: {metrics}")
    command("show", "robnet-free", "-o", "robnet-free.svg")
    assert Path("robnet-free.svg").stat().st_size > 0
    says("show draws the cells of robnet-free")


def attack() -> None:
    import torch

    import nni_robust

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10)]
    model = torch.nn.Sequential(*layers, *head).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    eps = 8 / 255
    pgd = nni_robust.attack("pgd", eps=eps, step_size=2 / 255, steps=5, random_start=True)
    adversarial = pgd(model, x, y)
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert 0 < (adversarial - x).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    says("an attack stays in ball and box and leaves the network as it was")


def doctor() -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    answer = json.loads(command("doctor", "--json", "--port", str(port)))
    assert answer["ok"], answer
    says("doctor finds nothing that fails")


def experiment() -> None:
    Path("smoke.yml").write_text(EXPERIMENT)
    outcome: dict[str, Any] = json.loads(command("run", "smoke.yml", "--out", "run", "--json"))
    run = Path(outcome["folder"])
    files = [
        "config.yaml",
        "run.json",
        "candidates.jsonl",
        "best.yaml",
        "final.json",
        "report.html",
    ]
    for name in files:
        assert (run / name).stat().st_size > 0, name
    best = json.loads(command("evaluate", str(run / "best.yaml"), "--limit", "8", "--json"))
    assert best["trained"] is True
    says(f"a tiny experiment leaves a whole run folder, and evaluate takes its best.yaml: {run}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outside", type=Path, action="append", default=[])
    outside = [folder.resolve() for folder in parser.parse_args().outside]
    here = Path.cwd().resolve()
    assert not any(here.is_relative_to(folder) for folder in outside), here
    assert "PYTHONPATH" not in os.environ
    package(outside)
    architectures()
    attack()
    doctor()
    experiment()


if __name__ == "__main__":
    main()
