"""The training loop: the one that everything in this library uses.

Lightning Fabric supplies devices, precision and distributed training. Every random decision has a
seed made from (run seed, purpose, epoch, batch), so a resumed training equals one that was never
interrupted, bit for bit on a CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from nni_robust.data import DataSplits
from nni_robust.errors import UserError
from nni_robust.store import read_json
from nni_robust.threat import ThreatModel
from nni_robust.training._records import EpochRecord, TrainResult, kept_epoch
from nni_robust.training._run import Run
from nni_robust.training._setup import (
    check_training,
    fingerprint,
    finished_result,
    leaves_unused,
    make_fabric,
)
from nni_robust.training.hooks import Hook
from nni_robust.training.logs import TrainingLog
from nni_robust.training.losses import LossWrapper
from nni_robust.training.recipe import Recipe
from nni_robust.training.weights import read_weights

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger

__all__ = ["train"]


def train(
    model: nn.Module,
    data: DataSplits,
    recipe: Recipe,
    threat: ThreatModel,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    hook: Hook | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    validate: bool = True,
    teacher: nn.Module | None = None,
    wrap: LossWrapper | None = None,
    logs: Sequence[TrainingLog | Logger] = (),
) -> TrainResult:
    """Train a network, robustly or not.

    Parameters
    ----------
    model
        Network from pictures (N, C, H, W), float32, in [0, 1], to logits (N, classes). Trained in
        place; it goes to the recipe's device.
    data
        Its training split is trained on, its search-validation split measured after every epoch.
    recipe
        All settings.
    threat
        The ball of the training attack and of the validation attack.
    folder
        Where checkpoints and the result go; None keeps nothing. A folder with checkpoints of the
        same training continues it; one with its result gives that at once.
    seed
        Of everything random: order, augmentation, attack starts, dropout, the hook's numbers.
    hook
        See :class:`Hook`.
    on_epoch
        Called with the record of each epoch that is trained now (not of those before an
        interruption), after its checkpoint is written; with several devices in the process of rank
        0.
    validate
        Measure accuracy after every epoch, of the network as the epoch's last batch left it (a
        supernet computes the path that it drew last).
    teacher
        A trained network of the same classes, for losses and terms that learn from one; it goes to
        the recipe's device. While it is asked it is in evaluation mode and has no gradients;
        afterwards it is as it was, bit for bit.
    wrap
        Adds to the recipe's loss, see :class:`LossWrapper`. Not with replays.
    logs
        Where the curve goes besides ``log.jsonl`` and ``log.csv`` in `folder`: what
        :func:`open_logs` gives, or loggers of Lightning (each is told the whole curve, epochs of
        before an interruption too). A log that fails is warned of; the training goes on.

    Returns
    -------
    TrainResult
        The network and the history.

    Raises
    ------
    UserError
        Before any work, if recipe, data and network do not go together or `folder` holds another
        training.
    TrainingDiverged
        If loss or weights become NaN or infinite.
    TrainingCollapsed
        If the loss is ``"fast"`` and the network came to resist its one step only.
    KeyboardInterrupt
        Passes through; the last checkpoint stays.

    Notes
    -----
    On several devices each trains its part of every batch (DDP). ``strategy="ddp"`` starts this
    program again for each device (Fabric's way), so it suits programs whose first act is to
    train; ``"ddp_spawn"`` and ``"ddp_fork"`` start processes from any program and give the weights
    back to it (spawn pickles its arguments; fork does not work once CUDA was used). With a hook,
    and for networks with weights that they never use, DDP looks for weights that a batch left
    unused, and leaves them alone.
    """
    if recipe.keep == "best" and hook is not None:
        raise UserError(
            "keep: 'best' is not allowed with a hook: a supernet's accuracy is that of one path"
        )
    if recipe.attack.compile and hook is not None:
        raise UserError(
            "attack.compile: true is not allowed with a hook: each path of a supernet would be "
            "compiled; attack.cuda_graph is"
        )
    # A supernet cannot be asked before its hook has drawn a path.
    check_training(
        model if hook is None else None,
        data,
        recipe,
        threat,
        validate=validate,
        teacher=teacher,
        wrap=wrap,
    )
    identity = fingerprint(
        model, data, recipe, threat, seed, validate=validate, teacher=teacher, wrap=wrap
    )
    folder = None if folder is None else Path(folder)
    history = None if folder is None else finished_result(model, folder, identity)
    if history is None:
        unused = hook is not None or (recipe.devices != 1 and leaves_unused(model, data))
        fabric = make_fabric(recipe, unused=unused)
        with tempfile.TemporaryDirectory() as shared:
            handover = Path(shared, "weights.safetensors")
            run = Run(
                model,
                data,
                recipe,
                threat,
                folder,
                seed,
                hook,
                on_epoch,
                validate,
                identity,
                teacher,
                wrap,
                handover,
                [TrainingLog.of(log) for log in logs],
            )
            outcome = fabric.launch(run)
            if isinstance(outcome, Exception):  # of another process
                raise outcome
            if outcome is None:  # trained in another process
                model.load_state_dict(read_weights(handover)[0])
                outcome = read_json(handover.with_suffix(".json"))
        history = [EpochRecord(**record) for record in outcome]
    model.eval()
    return TrainResult(
        model, history, sum(record.seconds for record in history), kept_epoch(history, recipe)
    )
