"""Recipes from settings: everything is checked before any work."""

from __future__ import annotations

import pytest

from nni_robust.config import as_mapping, parse
from nni_robust.errors import UserError
from nni_robust.training import Recipe, TrainAttack


def test_settings_travel_through_yaml_and_back():
    settings = {
        "epochs": 200,
        "schedule": "step",
        "milestones": [100, 150],
        "loss": "trades",
        "attack": {"steps": 7, "step_size": "2/255"},
        "augment": ["crop", "flip"],
        "averaging": 0.995,
        "validation_attack": {"name": "pgd", "steps": 20},
    }
    recipe = parse(Recipe, settings, "train")
    assert recipe.attack.step_size == pytest.approx(2 / 255)
    assert recipe.milestones == (100, 150)
    assert recipe.augment == ("crop", "flip")
    assert parse(Recipe, as_mapping(recipe), "train") == recipe
    assert parse(Recipe, None, "train") == Recipe()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epoch": 3}, "unknown key 'epoch' in train; did you mean 'epochs'"),
        ({"attack": {"step": 3}}, "unknown key 'step' in train.attack; did you mean 'steps'"),
        ({"epochs": -1}, "epochs: -1 is not allowed"),
        ({"epochs": "many"}, "train.epochs: 'many' is not allowed"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed; a whole number >= 1 is"),
        ({"lr": 0}, "lr: 0.0 is not allowed; a finite number > 0 is"),
        ({"lr": float("nan")}, "lr: nan is not allowed"),
        ({"momentum": 1.0}, "momentum: 1.0 is not allowed"),
        ({"nesterov": True, "momentum": 0}, "nesterov: true is not allowed"),
        ({"weight_decay": -1e-4}, "weight_decay: -0.0001 is not allowed"),
        ({"loss": "trade"}, "loss: 'trade' is not allowed; did you mean 'trades'"),
        ({"optimizer": "adamw"}, r"optimizer: 'adamw' is not allowed \(allowed: sgd\)"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": "step"}, r"milestones: \[\] is not allowed"),
        ({"schedule": "step", "milestones": [50, 20]}, "needs rising epochs between 0 and 100"),
        ({"schedule": "step", "milestones": [100]}, "needs rising epochs between 0 and 100"),
        ({"warmup_epochs": 100}, r"less than epochs \(100\) is"),
        ({"min_lr": 0.2}, r"min_lr: 0.2 is not allowed; at most lr \(0.1\) is"),
        ({"averaging": 1.0}, "averaging: 1.0 is not allowed"),
        ({"averaging": 0}, "averaging: 0.0 is not allowed"),
        ({"grad_clip": 0}, "grad_clip: 0.0 is not allowed"),
        ({"precision": "16-mixed"}, "precision: '16-mixed' is not allowed"),
        ({"strategy": "fsdp"}, "strategy: 'fsdp' is not allowed"),
        ({"devices": 0}, "devices: 0 is not allowed"),
        ({"augment": ["crop", "rotate"]}, "augment: 'rotate' is not allowed"),
        ({"validation_limit": 0}, "validation_limit: 0 is not allowed"),
        ({"checkpoint_steps": 0}, "checkpoint_steps: 0 is not allowed"),
        ({"attack": {"steps": 0}}, "attack.steps: 0 is not allowed"),
        ({"attack": {"step_size": 0}}, "attack.step_size: 0.0 is not allowed"),
        ({"attack": {"bn_mode": "off"}}, "bn_mode: 'off' is not allowed"),
        ({"loss": "trades", "attack": {"random_start": False}}, "attack.random_start: false"),
        ({"replays": 0}, "replays: 0 is not allowed; a whole number >= 1 is"),
        ({"replays": 4}, "attack.steps: 10 is not allowed with replays; 1 is"),
        ({"replays": 4, "loss": "trades"}, "replays: 4 is not allowed with loss 'trades'"),
        ({"replays": 4, "loss": "clean"}, "replays: 4 is not allowed with loss 'clean'"),
        ({"clean_epochs": -1}, "clean_epochs: -1 is not allowed; a whole number >= 0 is"),
        ({"clean_epochs": 100}, r"clean_epochs: 100 is not allowed; less than epochs \(100\) is"),
        ({"clean_epochs": 1, "loss": "clean"}, "clean_epochs: 1 is not allowed"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        parse(Recipe, settings, "train")
    assert "\n" not in str(caught.value)


def test_values_given_in_python_are_checked_too():
    with pytest.raises(UserError, match=r"epochs: 1\.5 is not allowed"):
        Recipe(epochs=1.5)
    with pytest.raises(UserError, match=r"attack\.bn_mode: 'off'"):
        TrainAttack(bn_mode="off")


def test_no_epochs_need_no_schedule():
    assert Recipe(epochs=0, schedule="step", warmup_epochs=5).epochs == 0


def test_a_key_of_several_kinds_is_named_with_all_of_them() -> None:
    with pytest.raises(
        UserError, match=r"^recipe\.attack\.fold: 'maybe' .* boolean.*; or: .*'auto'"
    ):
        parse(Recipe, {"attack": {"fold": "maybe"}}, "recipe")
    # Two wrong keys are not kinds of one.
    with pytest.raises(UserError, match=r"^recipe\.epochs: 'x' is not allowed: [^;]*$"):
        parse(Recipe, {"epochs": "x", "batch_size": "x"}, "recipe")
