"""Training: adversarial losses, recipes, and the one loop that everything uses."""

from __future__ import annotations

from nni_robust.training._records import (
    EpochRecord,
    TrainingCollapsed,
    TrainingDiverged,
    TrainResult,
)
from nni_robust.training._sections import in_section, parse_recipe
from nni_robust.training._setup import check_recipe, check_training
from nni_robust.training.batchnorm import recalibrate_bn
from nni_robust.training.curve import read_curve
from nni_robust.training.hooks import Hook, StatefulHook
from nni_robust.training.logs import TrainingLog, check_logs, open_logs
from nni_robust.training.loop import train
from nni_robust.training.losses import LossWrapper, RobustLoss
from nni_robust.training.named import NamedRecipe, list_recipes, load_recipe
from nni_robust.training.recipe import Distillation, Recipe, TrainAttack
from nni_robust.training.weights import load_weights, save_weights

__all__ = [
    "Distillation",
    "EpochRecord",
    "Hook",
    "LossWrapper",
    "NamedRecipe",
    "Recipe",
    "RobustLoss",
    "StatefulHook",
    "TrainAttack",
    "TrainResult",
    "TrainingCollapsed",
    "TrainingDiverged",
    "TrainingLog",
    "check_logs",
    "check_recipe",
    "check_training",
    "in_section",
    "list_recipes",
    "load_recipe",
    "load_weights",
    "open_logs",
    "parse_recipe",
    "read_curve",
    "recalibrate_bn",
    "save_weights",
    "train",
]
