"""Training: adversarial losses, recipes, and the one loop that everything uses."""

from __future__ import annotations

from nni_robust.training._records import EpochRecord, TrainingDiverged, TrainResult
from nni_robust.training._setup import check_training
from nni_robust.training.batchnorm import recalibrate_bn
from nni_robust.training.hooks import Hook, StatefulHook
from nni_robust.training.loop import train
from nni_robust.training.named import NamedRecipe, list_recipes, load_recipe
from nni_robust.training.recipe import Recipe, TrainAttack
from nni_robust.training.weights import load_weights, save_weights

__all__ = [
    "EpochRecord",
    "Hook",
    "NamedRecipe",
    "Recipe",
    "StatefulHook",
    "TrainAttack",
    "TrainResult",
    "TrainingDiverged",
    "check_training",
    "list_recipes",
    "load_recipe",
    "load_weights",
    "recalibrate_bn",
    "save_weights",
    "train",
]
