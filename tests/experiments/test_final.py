"""Final networks: small spaces, strengths of the curve, recipes with an undefended form."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust import load_architecture
from nni_robust.data import load_task
from nni_robust.errors import UserError
from nni_robust.evaluation import eps_curve
from nni_robust.experiments import load_experiment, run_experiment
from nni_robust.experiments._final import undefended
from nni_robust.store import read_json, read_records
from nni_robust.training import Recipe, list_recipes, load_recipe

Write = Callable[..., str]

RECIPE: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 64,
    "attack": {"steps": 1},
    "validation_attack": None,
}
EVALUATOR = {"name": "adversarial-training", "train": {**RECIPE, "epochs": 0}, "attacks": ["fgsm"]}
FINAL = {"train": RECIPE, "attacks": ["fgsm"], "eps_factors": [0, 1], "steps": [], "examples": 0}


def run_final(write: Write, widths: list[int], trials: int, **sections: Any) -> Path:
    """Search the wide residual networks up to these widths, with one block per stage."""
    small = {"depths": [1, 1, 1], "stem_channels": 2, "base_channels": 2}
    file = write(
        space={"name": "wide-resnet", "widths": widths, **small},
        strategy="random",
        evaluator=EVALUATOR,
        nni={"engine": "sequential", "trials": trials},
        **{"final": FINAL, **sections},
    )
    return run_experiment(file, out="run", html=True, report=lambda line: None)


def test_a_space_smaller_than_the_rivals_draws(experiment_file: Write) -> None:
    """Of 27 networks 26 are left beside the winner; the nearest of all of them is the rival."""
    run = run_final(experiment_file, [3, 3, 3], 3)
    networks = {n["label"]: n for n in read_json(run / "final.json")["networks"]}
    assert list(networks) == ["best", "random", "undefended"]
    assert "of 26 draws, all that were found (final.rival_draws: 100)" in networks["random"]["note"]
    best, rival = (load_architecture(str(run / f"{name}.yaml")) for name in ("best", "random"))
    assert best.sample != rival.sample
    aim = best.cost().macs
    places = sorted(label for label in best.sample if "width" in label)
    assert len(places) == 3
    macs = []
    for widths in itertools.product((1, 2, 3), repeat=3):
        sample = {**best.sample, **dict(zip(places, widths, strict=True))}
        if sample != best.sample:
            other = dataclasses.replace(best, sample=sample, weights=None)
            macs.append(abs(other.cost().macs - aim))
    assert len(macs) == 26
    assert abs(rival.cost().macs - aim) == min(macs)


def test_a_space_of_one_network_has_no_rival(experiment_file: Write) -> None:
    run = run_final(experiment_file, [1, 1, 1], 1)
    networks = {n["label"]: n for n in read_json(run / "final.json")["networks"]}
    assert set(networks) == {"best", "undefended", "random"}
    assert networks["random"]["metrics"] == {}
    assert "left out: the space has no other architecture" in networks["random"]["note"]
    assert "left out: the space has no other" in (run / "report.html").read_text()
    assert (run / "best.safetensors").is_file()
    assert not (run / "random.yaml").exists()


@pytest.mark.parametrize(
    ("threat", "strengths"),
    [
        ({"norm": "l2", "eps": 1.5}, [0, 0.75, 1.5, 3.0]),
        ({"norm": "linf", "eps": 0.6}, [0, 0.3, 0.6, 1.0]),
    ],
)
def test_strengths_of_the_curve(
    experiment_file: Write, threat: dict[str, Any], strengths: list[float]
) -> None:
    """In L2 a ball may be larger than 1; in L∞ 1 is everything that a pixel can be."""
    task = {"threat": threat, "train_limit": 128, "validation_limit": 64, "test_limit": 32}
    run = run_final(
        experiment_file,
        [1, 1, 1],
        1,
        task=task,
        final={**FINAL, "rivals": [], "eps_factors": [0, 0.5, 1, 2]},
    )
    (best,) = read_json(run / "final.json")["networks"]
    assert [eps for eps, _ in best["eps_curve"]] == strengths
    settings = load_experiment(str(run / "config.yaml")).task
    network = load_architecture(str(run / "best.yaml")).build().eval()
    pictures = load_task(settings, test=True).test
    again = eps_curve(network, pictures, strengths, norm=settings.threat.norm)
    assert best["eps_curve"] == [list(point) for point in again]


def test_a_recipe_of_free_training_has_an_undefended_form(experiment_file: Write) -> None:
    free = {**RECIPE, "epochs": 2, "replays": 2, "clean_epochs": 1}
    run = run_final(experiment_file, [1, 1, 1], 1, final={**FINAL, "train": free})
    networks = {n["label"]: n for n in read_json(run / "final.json")["networks"]}
    assert len(networks["undefended"]["history"]) == 2


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_has_an_undefended_form(name: str) -> None:
    recipe = load_recipe(name).recipe
    clean = undefended(recipe)
    assert clean.loss == "clean"
    assert (clean.epochs, clean.lr, clean.schedule) == (recipe.epochs, recipe.lr, recipe.schedule)
    assert undefended(Recipe(loss="trades", clean_epochs=3)).clean_epochs == 0


def quiet(line: str) -> None:
    pass


def stopped(line: str) -> None:
    """Ctrl-C between the search and the final networks."""
    if "training the final networks" in line:
        raise KeyboardInterrupt


def test_final_may_change_until_it_has_begun(experiment_file: Write) -> None:
    small = {"depths": [1, 1, 1], "widths": [3, 3, 3], "stem_channels": 2, "base_channels": 2}
    sections = {
        "space": {"name": "wide-resnet", **small},
        "strategy": "random",
        "evaluator": EVALUATOR,
        "nni": {"engine": "sequential", "trials": 2},
    }
    file = experiment_file(**sections, final={**FINAL, "rivals": ["random"], "limit": 8})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(file, out="run", html=False, report=stopped)
    run = Path("run").resolve()
    found = {p: p.stat().st_mtime_ns for p in run.glob("store/*/record.json")}
    records = read_records(run / "candidates.jsonl")
    assert len(found) == len(records) == 2

    file = experiment_file(**sections, final={**FINAL, "rivals": [], "limit": 16})
    with pytest.raises(UserError, match=r"seed: 0 there, 7 now\. Only nni.* may change"):
        run_experiment(file, out="run", resume=True, overrides=["seed=7"], report=quiet)
    run_experiment(file, out="run", resume=True, html=False, report=quiet)
    (best,) = read_json(run / "final.json")["networks"]
    assert best["pictures"] == 16
    assert read_records(run / "candidates.jsonl") == records
    assert {p: p.stat().st_mtime_ns for p in found} == found  # no trial of the search was repeated
    assert len(list(run.glob("store/*/record.json"))) == 3
    assert yaml.safe_load((run / "config.yaml").read_text())["final"]["limit"] == 16

    before = (run / "final.json").read_bytes()
    for limit in (8, 32):
        with pytest.raises(UserError, match=f"final.limit: 16 there, {limit} now.*until the first"):
            run_experiment(str(run), resume=True, overrides=[f"final.limit={limit}"], report=quiet)
    (run / "run.json").unlink()  # lost: best.yaml says that the search had come to its end
    with pytest.raises(UserError, match=r"final\.limit: 16 there, 8 now"):
        run_experiment(str(run), resume=True, overrides=["final.limit=8"], report=quiet)
    run_experiment(str(run), resume=True, html=False, report=quiet)
    assert (run / "final.json").read_bytes() == before


def test_a_finished_search_may_get_a_final_phase(experiment_file: Write) -> None:
    run = run_final(experiment_file, [2, 1, 1], 2, final=None)
    assert not (run / "final.json").exists()
    wanted = json.dumps({**FINAL, "rivals": []})
    run_experiment(str(run), resume=True, overrides=[f"final={wanted}"], report=quiet)
    assert [n["label"] for n in read_json(run / "final.json")["networks"]] == ["best"]
    assert [r["phase"] for r in read_records(run / "candidates.jsonl")] == ["candidate"] * 2
