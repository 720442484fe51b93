"""What happens before the first step: checks, Fabric, optimizer, a result that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_robust.attacks import attack_from_spec, undisturbed
from nni_robust.config import as_mapping
from nni_robust.data import DataSplits
from nni_robust.data.augment import check_augment
from nni_robust.errors import UserError
from nni_robust.store import content_key, read_json
from nni_robust.threat import ThreatModel
from nni_robust.training._records import EpochRecord
from nni_robust.training.losses import build_loss
from nni_robust.training.recipe import Recipe
from nni_robust.training.weights import load_weights

__all__ = [
    "Forwards",
    "build_optimizer",
    "check_training",
    "fingerprint",
    "finished_result",
    "make_fabric",
    "refuse_other",
]


class Forwards(nn.Module):
    """A network called with one or more batches at once: one call to Fabric and DDP."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits (N, K) of each batch (N, C, H, W)."""
        return tuple(self.model(x) for x in batches)


def check_training(
    model: nn.Module | None,
    data: DataSplits,
    recipe: Recipe,
    threat: ThreatModel,
    *,
    validate: bool = True,
) -> None:
    """Refuse what cannot work, before any work.

    Parameters
    ----------
    model
        The network, or None where there is none yet.
    data, recipe, threat, validate
        See :func:`nni_robust.training.train`.

    Raises
    ------
    UserError
        If the batch is larger than the data, an augmentation does not suit the data, there is
        nothing to validate on, an attack's settings are impossible, or the network's output does
        not fit.
    """
    if recipe.batch_size > len(data.train):
        raise UserError(
            f"batch_size: {recipe.batch_size} is not allowed; '{data.name}' has only "
            f"{len(data.train)} training pictures"
        )
    if recipe.augment is not None:
        check_augment(recipe.augment, streamed=data.train.streamed)
    if validate and len(data.validation) == 0:
        raise UserError(
            f"'{data.name}' has no search-validation pictures to validate on; give a share > 0 as "
            "validation, or train without validating"
        )
    build_loss(recipe, threat)  # checks the settings of its attack
    if recipe.validation_attack is not None:
        attack_from_spec(recipe.validation_attack, threat)
    if model is not None:
        _check_output(model, data)


def _check_output(model: nn.Module, data: DataSplits) -> None:
    """Show the network two pictures."""
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("the network has no weights to train")
    device = next(model.parameters()).device
    x, _ = next(data.train.head(2).batches(2, device=device))
    with torch.no_grad(), undisturbed(model):
        logits = model(x)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"the network's output must be (N, classes), not {shape} for {len(x)}")
    if logits.shape[1] < data.num_classes:
        raise UserError(
            f"the network knows {logits.shape[1]} classes; '{data.name}' has {data.num_classes}"
        )


#: Strategies for several devices and how their processes start (fork does not work with CUDA).
_START_METHODS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork"}


def make_fabric(recipe: Recipe, *, unused: bool = False) -> Any:
    """Lightning Fabric with the recipe's devices and precision.

    Parameters
    ----------
    recipe
        All settings.
    unused
        Batches may leave weights unused (a supernet's other paths); DDP then has to look for them.

    Raises
    ------
    UserError
        If this machine has no such devices, or the batch cannot be divided among them.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    strategy: Any = recipe.strategy
    if unused and recipe.devices != 1:
        method: Any = _START_METHODS.get(strategy, "popen")
        strategy = DDPStrategy(start_method=method, find_unused_parameters=True)
    try:
        fabric = Fabric(
            accelerator=recipe.accelerator,
            devices=recipe.devices,
            strategy=strategy,
            precision=recipe.precision,  # type: ignore[arg-type]
        )
    except (MisconfigurationException, ValueError, RuntimeError) as e:
        raise UserError(
            f"accelerator '{recipe.accelerator}', devices {recipe.devices}, strategy "
            f"'{recipe.strategy}' cannot be used on this machine: {' '.join(str(e).split())}"
        ) from None
    if recipe.batch_size % fabric.world_size:
        raise UserError(
            f"batch_size: {recipe.batch_size} is not allowed with {fabric.world_size} devices; "
            "a multiple of their number is"
        )
    return fabric


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD over all weights that require a gradient.

    With ``no_decay_norm_bias``, weights with one dimension (biases, normalisation) do not decay.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": recipe.weight_decay}]
    if recipe.no_decay_norm_bias:
        groups = [
            {"params": [p for p in weights if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
    )


def fingerprint(
    model: nn.Module,
    data: DataSplits,
    recipe: Recipe,
    threat: ThreatModel,
    seed: int,
    *,
    validate: bool,
) -> dict[str, Any]:
    """What a training is; a folder continues only the same one. JSON-able."""
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    return {
        "recipe": as_mapping(recipe),
        "threat": as_mapping(threat),
        "seed": seed,
        "data": {
            "name": data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "input_shape": list(data.input_shape),
        },
        "network": content_key(shapes),
        "validate": validate,
    }


def finished_result(
    model: nn.Module, folder: Path, identity: dict[str, Any]
) -> list[EpochRecord] | None:
    """History of the finished training in a folder, whose weights go into the network; else None.

    Raises
    ------
    UserError
        If the folder holds another training or is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    refuse_other(result["training"], identity, folder)
    load_weights(model, folder / "weights.safetensors")
    return [EpochRecord(**record) for record in result["history"]]


def refuse_other(found: dict[str, Any], wanted: dict[str, Any], folder: Path | None) -> None:
    """Raise a UserError naming the first setting in which a folder's training differs."""
    before, now = _flat(found), _flat(wanted)
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            raise UserError(
                f"folder '{folder}' holds another training: {key} was {before.get(key)!r}, "
                f"now it is {now.get(key)!r}; use another folder"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
