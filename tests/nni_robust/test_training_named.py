"""The recipes that come with the library: numbers of the papers, sources, files, wrong names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import NamedRecipe, list_recipes, load_recipe, named

FILES = sorted((Path(named.__file__).parent / "recipes").glob("*.yaml"), key=lambda p: p.stem)
ROBNET = [name for name in list_recipes() if name.startswith("robnet-")]


def test_names() -> None:
    assert list_recipes() == [path.stem for path in FILES]
    assert ROBNET == [
        "robnet-cifar10",
        "robnet-cifar100",
        "robnet-imagenet-free",
        "robnet-repo-cifar10",
        "robnet-svhn",
        "robnet-tiny-imagenet",
        "robnet-tiny-imagenet-warm",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_says_where_it_comes_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.stem in ROBNET:
        assert "1911.10695" in text or "gmh14/RobNets at 0fbcb03" in text
    assert "\n# Unverified: " in text or "\n# Different here: " in text
    assert "\n# From " in text
    assert max(map(len, text.splitlines())) <= 105
    assert load_recipe(path) == NamedRecipe(
        str(path),
        load_recipe(path.stem).recipe,
        load_recipe(path.stem).threat,
        load_recipe(path.stem).about,
    )
    assert len(load_recipe(path.stem).about.split("\n")) == text.count("\n#") + 1


@pytest.mark.parametrize(
    ("name", "epochs", "rates"),
    [
        ("robnet-cifar10", 200, {0: 0.1, 99: 0.1, 100: 0.01, 150: 0.001, 199: 0.001}),
        ("robnet-cifar100", 200, {0: 0.1, 99: 0.1, 100: 0.01, 150: 0.001}),
        ("robnet-svhn", 200, {0: 0.01, 99: 0.01, 100: 0.001, 150: 0.0001}),
        ("robnet-tiny-imagenet", 90, {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001}),
        ("robnet-tiny-imagenet-warm", 90, {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001}),
        ("robnet-imagenet-free", 23, {0: 0.1, 7: 0.1, 8: 0.01, 16: 0.001, 22: 0.001}),
        # Printed by the repository's own scheduler.
        ("robnet-repo-cifar10", 170, {0: 0.02, 10: 0.61, 20: 1.2, 95: 0.6005, 169: 0.00113}),
        ("rcnas-trades", 100, {0: 0.1, 74: 0.1, 75: 0.01, 89: 0.01, 90: 0.001}),
        # Beginning, peak and end of torch's OneCycleLR(max_lr=0.1, total_steps=100).
        ("modern-cifar10", 100, {0: 0.004, 30: 0.1, 65: 0.05}),
        ("rslad-cifar10", 300, {0: 0.1, 214: 0.1, 215: 0.01, 260: 0.001, 285: 0.0001}),
    ],
)
def test_rates_by_epoch(name: str, epochs: int, rates: dict[int, float]) -> None:
    recipe = load_recipe(name).recipe
    assert recipe.epochs == epochs
    for epoch, rate in rates.items():
        assert recipe.learning_rate(10 * epoch, 10) == pytest.approx(rate, rel=2e-3)
    assert recipe.learning_rate(5, 10) == pytest.approx(rates[0])  # constant within an epoch


@pytest.mark.parametrize("name", ROBNET)
def test_attack_and_optimizer(name: str) -> None:
    found = load_recipe(name)
    recipe = found.recipe
    free = name == "robnet-imagenet-free"
    assert found.threat == ThreatModel(norm="linf", eps=(4 if free else 8) / 255)
    assert (recipe.loss, recipe.momentum, recipe.weight_decay) == ("madry", 0.9, 1e-4)
    assert (recipe.attack.steps, recipe.replays) == ((1, 4) if free else (7, 1))
    assert (recipe.clean_epochs > 0) == name.endswith("-warm")
    assert 10 <= recipe.clean_epochs <= 20 or not name.endswith("-warm")


@pytest.mark.parametrize("loss", ["trades", "mart", "madry"])
def test_rcnas_recipes_differ_in_their_loss_only(loss: str) -> None:
    found = load_recipe("rcnas-sat" if loss == "madry" else f"rcnas-{loss}")
    assert found.threat == ThreatModel(norm="linf", eps=8 / 255)
    same = {"loss": "madry", "beta": None}
    assert dataclasses.replace(found.recipe, **same) == load_recipe("rcnas-sat").recipe
    assert (found.recipe.loss, found.recipe.grad_clip) == (loss, 5)
    assert (found.recipe.attack.steps, found.recipe.weight_decay) == (10, 2e-4)
    cutmix = load_recipe("rcnas-trades-cutmix").recipe
    assert cutmix.mixes
    assert cutmix.averaging == 0.995
    assert not found.recipe.mixes


def test_changes_are_laid_over_the_file() -> None:
    changes: dict[str, Any] = {"attack": {"steps": 3}, "threat": {"eps": "1/255"}}
    found = load_recipe("robnet-cifar10", changes)
    assert (found.recipe.attack.steps, found.recipe.attack.bn_mode) == (3, "train")
    assert found.threat == ThreatModel(eps=1 / 255)
    assert load_recipe("robnet-cifar10").recipe.attack.steps == 7


def test_files_with_and_without_a_threat(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\n")
    assert load_recipe(path).threat is None
    path.write_text("epochs: 3\nthreat: {norm: l2, eps: 0.5}\n")
    assert load_recipe(path).threat == ThreatModel(norm="l2", eps=0.5)
    (tmp_path / "plain").write_text("epochs: 4\n")
    assert load_recipe(tmp_path / "plain").recipe.epochs == 4


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("robnet-cifar1O", None, "unknown recipe 'robnet-cifar1O'; did you mean 'robnet-cifar10'"),
        ("madry", None, "unknown recipe 'madry' .known: .*robnet-cifar10, robnet-cifar100"),
        ("absent.yaml", None, "no file 'absent.yaml'"),
        ("a.yaml", "epoch: 3", "unknown key 'epoch' in recipe; did you mean 'epochs'"),
        ("a.yaml", "threat: {esp: 0.1}", "unknown key 'esp' in recipe.threat; did you mean 'eps'"),
        ("a.yaml", "threat: {eps: 2}", "threat.eps: 2.0 is not allowed for linf"),
        ("a.yaml", "- 1", "must hold a mapping"),
    ],
)
def test_what_is_wrong_costs_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_recipe(name)
    assert "\n" not in str(caught.value)


def test_the_modern_recipe_has_all_that_helps() -> None:
    found = load_recipe("modern-cifar10")
    recipe = found.recipe
    assert (recipe.loss, recipe.attack.steps) == ("madry", 10)
    assert (recipe.averaging, recipe.label_smoothing, recipe.keep) == (0.9995, 0.4, "best")
    assert (recipe.validation_attack, recipe.validation_limit) == ("pgd10", 1000)
    assert found.threat == ThreatModel(eps=8 / 255)
    assert "50.49" in found.about
    assert "Not reproduced here" in found.about
