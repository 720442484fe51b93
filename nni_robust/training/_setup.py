"""What happens before the first step: checks, Fabric, optimizer, a result that is there already."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_robust._pictures import make_attacks
from nni_robust.attacks import undisturbed
from nni_robust.attacks._compile import need_compiler
from nni_robust.config import as_mapping
from nni_robust.data import DataSplits
from nni_robust.data.augment import check_augment
from nni_robust.errors import UserError, nearest
from nni_robust.store import content_key, read_json
from nni_robust.threat import ThreatModel
from nni_robust.training._records import EpochRecord
from nni_robust.training.curve import read_curve
from nni_robust.training.losses import LossWrapper, build_loss
from nni_robust.training.recipe import TAUGHT, Recipe
from nni_robust.training.weights import load_weights

__all__ = [
    "RESULT",
    "Forwards",
    "build_optimizer",
    "check_recipe",
    "check_training",
    "fingerprint",
    "finished_result",
    "leaves_unused",
    "make_fabric",
    "refuse_other",
    "weights_key",
]

#: File that says of a folder that its training is finished, and which one it was.
RESULT = "result.json"


class Forwards(nn.Module):
    """A network called with one or more batches at once: one call to Fabric and DDP."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits (N, K) of each batch (N, C, H, W)."""
        return tuple(self.model(x) for x in batches)


def check_recipe(
    recipe: Recipe, data: DataSplits, threat: ThreatModel, *, validate: bool = True
) -> None:
    """Refuse a recipe that does not suit the data, the threat or the installed software.

    Parameters
    ----------
    recipe, data, threat, validate
        See :func:`nni_robust.training.train`.

    Raises
    ------
    UserError
        If the batch is larger than the data, an augmentation does not suit the data, there is
        nothing to validate on, an attack's settings are impossible, or nothing is called like the
        accelerator.
    """
    if recipe.batch_size > len(data.train):
        raise UserError(
            f"batch_size: {recipe.batch_size} is not allowed; '{data.name}' has only "
            f"{len(data.train)} training pictures"
        )
    if recipe.augment is not None:
        check_augment(recipe.augment, streamed=data.train.streamed, mixing=True)
    if validate and len(data.validation) == 0:
        raise UserError(
            f"'{data.name}' has no search-validation pictures to validate on; give a share > 0 as "
            "validation, or train without validating"
        )
    if recipe.keep == "best" and not validate:
        raise UserError("keep: 'best' is not allowed without validating; 'last' is")
    build_loss(recipe, threat)  # checks the settings of its attack
    if recipe.attack.compile:
        need_compiler()
    if recipe.validation_attack is not None:
        try:
            make_attacks([recipe.validation_attack], threat)
        except UserError as e:
            raise UserError(f"validation_attack: {e}") from None
    if recipe.accelerator not in _ACCELERATORS:
        raise UserError(
            f"accelerator: {recipe.accelerator!r} is not allowed"
            f"{nearest(recipe.accelerator, _ACCELERATORS)} (allowed: {', '.join(_ACCELERATORS)})"
        )


#: Fabric's names.
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")


def check_training(
    model: nn.Module | None,
    data: DataSplits,
    recipe: Recipe,
    threat: ThreatModel,
    *,
    validate: bool = True,
    teacher: nn.Module | None = None,
    wrap: LossWrapper | None = None,
) -> None:
    """Refuse what cannot work, before any work.

    Parameters
    ----------
    model
        The network, or None where there is none yet.
    data, recipe, threat, validate, teacher, wrap
        See :func:`nni_robust.training.train`.

    Raises
    ------
    UserError
        If there is no teacher for a loss that needs one, the batch is larger than the data, an
        augmentation does not suit the data, there is nothing to validate on, an attack's settings
        are impossible, or the output of network or teacher does not fit.
    """
    check_recipe(recipe, data, threat, validate=validate)
    if recipe.needs_teacher and teacher is None:
        what = "distillation" if recipe.loss not in TAUGHT else f"loss: '{recipe.loss}'"
        raise UserError(f"{what} is not allowed without a teacher")
    if wrap is not None and recipe.replays > 1:
        raise UserError(
            f"replays: {recipe.replays} is not allowed with {type(wrap).__name__}, which adds to "
            "a loss; 1 is"
        )
    classes = None if model is None else _check_output(model, data)
    if recipe.needs_teacher and teacher is not None:
        known = _outputs(teacher, data)
        if known != (data.num_classes if classes is None else classes):
            raise UserError(
                f"the teacher knows {known} classes and the network "
                f"{data.num_classes if classes is None else classes}; they must know the same"
            )


def _check_output(model: nn.Module, data: DataSplits) -> int:
    """The network's number of classes, as far as it can be trained."""
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("the network has no weights to train")
    classes = _outputs(model, data)
    if classes < data.num_classes:
        raise UserError(
            f"the network knows {classes} classes; '{data.name}' has {data.num_classes}"
        )
    return classes


def _outputs(model: nn.Module, data: DataSplits) -> int:
    """Show a network two pictures; its number of classes."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    x, _ = next(data.train.head(2).batches(2, device=device))
    with torch.no_grad(), undisturbed(model):
        logits = model(x)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"the network's output must be (N, classes), not {shape} for {len(x)}")
    return int(logits.shape[1])


def leaves_unused(model: nn.Module, data: DataSplits) -> bool:
    """Whether some of the weights that are trained play no part in the network's output.

    DDP must look for those after every batch, or it waits for their gradients for ever.
    """
    device = next((p.device for p in model.parameters()), None)
    x, _ = next(data.train.head(2).batches(2, device=device))
    weights = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad(), undisturbed(model):
        for p in weights:
            p.requires_grad_()
        gradients = torch.autograd.grad(model(x).sum(), weights, allow_unused=True)
    return any(gradient is None for gradient in gradients)


#: Strategies for several devices and how their processes start (fork does not work with CUDA).
_START_METHODS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork"}


def make_fabric(recipe: Recipe, *, unused: bool = False) -> Any:
    """Lightning Fabric with the recipe's devices and precision.

    Parameters
    ----------
    recipe
        All settings.
    unused
        Batches may leave weights unused (a supernet's other paths, layers that the network never
        calls); DDP then has to look for them.

    Raises
    ------
    UserError
        If this machine has no such devices, or the batch cannot be divided among them; or CUDA
        graphs are asked for without CUDA.
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
    if recipe.attack.cuda_graph is True and fabric.device.type != "cuda":
        raise UserError(
            f"attack.cuda_graph: true is not allowed on '{fabric.device.type}'; a CUDA device is, "
            "or 'auto'"
        )
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
    teacher: nn.Module | None = None,
    wrap: LossWrapper | None = None,
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
        "teacher": None if teacher is None else weights_key(teacher),
        # As JSON gives it back: a tuple comes from a file as a list.
        "wrap": None if wrap is None else json.loads(json.dumps(wrap.settings())),
    }


def weights_key(network: nn.Module) -> str:
    """What a network is: its class, and names, shapes and values of its state (a hash)."""
    digest = hashlib.sha256(f"{type(network).__module__}.{type(network).__qualname__}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def finished_result(
    model: nn.Module, folder: Path, identity: dict[str, Any]
) -> list[EpochRecord] | None:
    """History of the finished training in a folder, whose weights go into the network; else None.

    Raises
    ------
    UserError
        If the folder holds another training or is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    result = read_json(path)
    refuse_other(result["training"], identity, folder)
    load_weights(model, folder / "weights.safetensors")
    return read_curve(folder)


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
