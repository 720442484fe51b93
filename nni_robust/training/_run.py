"""One training, from its first batch to its last."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_robust.attacks import NonFiniteOutput, undisturbed
from nni_robust.attacks._fold import whatever_rounds
from nni_robust.data import DataSplits, derive_seed, generator
from nni_robust.data.augment import CUTMIX
from nni_robust.errors import UserError
from nni_robust.store import write_json
from nni_robust.threat import ThreatModel
from nni_robust.training import _checkpoint
from nni_robust.training._averaging import WeightAverage
from nni_robust.training._best import BestEpoch
from nni_robust.training._collapse import collapsed, count_right
from nni_robust.training._records import (
    EpochRecord,
    TrainingCollapsed,
    TrainingDiverged,
    impatient,
    kept_epoch,
)
from nni_robust.training._setup import (
    RESULT,
    Forwards,
    build_optimizer,
    refuse_other,
)
from nni_robust.training._state import RunningSums, capture, restore
from nni_robust.training._validation import Validation
from nni_robust.training.curve import write_curve
from nni_robust.training.cutmix import Mixer
from nni_robust.training.distilled import Oracle
from nni_robust.training.hooks import Hook, StatefulHook
from nni_robust.training.logs import TrainingLog, close_logs, write_logs
from nni_robust.training.losses import LossWrapper, RobustLoss, build_loss, clean_loss
from nni_robust.training.recipe import Recipe
from nni_robust.training.weights import plain_tensors, save_weights, write_tensors

__all__ = ["Run"]

# Steps between two looks at the loss on the host; each waits for the device.
_LOOK_EVERY = 100


class Run:
    """One training. Made in the calling process, run in that of each device."""

    def __init__(
        self,
        model: nn.Module,
        data: DataSplits,
        recipe: Recipe,
        threat: ThreatModel,
        folder: Path | None,
        seed: int,
        hook: Hook | None,
        on_epoch: Callable[[EpochRecord], None] | None,
        validate: bool,
        identity: dict[str, Any],
        teacher: nn.Module | None,
        wrap: LossWrapper | None,
        handover: Path,
        logs: Sequence[TrainingLog],
    ) -> None:
        self.model, self.data, self.recipe, self.threat = model, data, recipe, threat
        self.folder, self.seed, self.hook, self.on_epoch = folder, seed, hook, on_epoch
        self.validate, self.identity, self.process = validate, identity, os.getpid()
        self.teacher, self.wrap, self.handover, self.logs = teacher, wrap, handover, logs

    def __call__(self, fabric: Any) -> Any:
        """Train; another process than the calling one leaves weights in the file `handover`.

        Lightning reads the answer of a process after its end, so one that is larger than a pipe
        (64 KiB) would be waited for without end; and tensors would go with their process.

        Returns
        -------
        list or Exception
            The history as dictionaries, or why there is none, for a process launcher would bury
            the sentence in tracebacks.
        """
        elsewhere, status = os.getpid() != self.process, "failed"
        try:
            self._train(fabric)
            status = "success"
        except (TrainingDiverged, UserError) as e:
            if elsewhere:
                return e
            raise
        finally:
            if fabric.is_global_zero:
                close_logs(self.logs, status)
        records = [asdict(record) for record in self.history]
        if not elsewhere:
            return records
        if fabric.is_global_zero:
            write_tensors(self.handover, plain_tensors(self.model.state_dict()), {})
            write_json(self.handover.with_suffix(".json"), records)
        return None

    def _train(self, fabric: Any) -> None:
        self.fabric = fabric
        cuda = [fabric.device] if fabric.device.type == "cuda" else []
        frozen = nullcontext() if self.teacher is None else undisturbed(self.teacher)
        with torch.random.fork_rng(devices=cuda), frozen:
            self._prepare()
            while self.epoch < self.recipe.epochs and not impatient(self.history, self.recipe):
                self._train_epoch()
        if not self.best.apply(self.model) and self.average is not None:
            self.average.apply()
        if self.folder is not None and fabric.is_global_zero:
            save_weights(self.model, self.folder / "weights.safetensors")
            kept = kept_epoch(self.history, self.recipe)
            write_json(self.folder / RESULT, {"training": self.identity, "kept_epoch": kept})
            _checkpoint.clear(self.folder)

    def _prepare(self) -> None:
        """Network, optimizer and data to their device; continue from a checkpoint."""
        if self.recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mixer = Mixer(self.model, self.recipe.cutmix_probability, self.fabric)
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.forward, self.stepper = self.fabric.setup(Forwards(self.model), self.optimizer)
        self._build_losses()
        decay = self.recipe.averaging
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.train_data = self.data.train.to(self.fabric.device)
        if self.validate:
            self.validation = Validation(
                self.data.validation,
                self.recipe,
                self.threat,
                self.fabric,
                derive_seed(self.seed, "validation"),
            )
        self.sums = RunningSums(self.fabric.device)
        self.epoch, self.batch, self.elapsed = 0, 0, 0.0
        self.history: list[EpochRecord] = []
        self.best = BestEpoch()
        self.steps_per_epoch = len(self.train_data) // self.recipe.batch_size
        newest = None if self.folder is None else _checkpoint.load_newest(self.folder)
        if newest is not None:
            tensors, state = newest
            refuse_other(state["training"], self.identity, self.folder)
            restore(tensors, state, self.model, self.optimizer, self.average, self.sums)
            self.epoch, self.batch = state["epoch"], state["batch"]
            self.elapsed = state["elapsed"]
            self.best.load(tensors)
            self.history = [EpochRecord(**record) for record in state["history"]]
            if isinstance(self.hook, StatefulHook):
                self.hook.load_state_dict(state.get("hook", {}))
        self._log()

    def _build_losses(self) -> None:
        """The loss, and that of the clean epochs, with all that is added to them."""
        oracle = None
        if self.teacher is not None:
            oracle = Oracle(self.teacher.to(self.fabric.device), self.fabric.autocast)
        self.objective = build_loss(
            self.recipe, self.threat, oracle, changing=self.hook is not None
        )
        self.clean = clean_loss(self.recipe, oracle) if self.recipe.clean_epochs else None
        if self.wrap is not None:
            self.objective = self.wrap(self.objective, self.model, self.teacher)
            if self.clean is not None:
                self.clean = self.wrap(self.clean, self.model, self.teacher)

    def _train_epoch(self) -> None:
        began = time.monotonic() - self.elapsed
        self.model.train()
        augment = self.recipe.augment
        if augment is not None:
            augment = tuple(name for name in augment if name != CUTMIX)
        stream = self.train_data.batches(
            self.recipe.batch_size,
            shuffle=True,
            seed=derive_seed(self.seed, "data"),
            epoch=self.epoch,
            augment=self.data.train.augment if augment is None else augment,
            drop_last=True,
            start=self.batch,
            shard=(self.fabric.global_rank, self.fabric.world_size),
        )
        every = self.recipe.checkpoint_steps
        for x, y in stream:
            self._train_batch(x, y)
            self.batch += 1
            last = self.batch == self.steps_per_epoch
            if not last and every is not None and self._steps() % every == 0:
                self.elapsed = time.monotonic() - began
                self._look(weights=True)
                self._save()
            elif not last and self.batch % _LOOK_EVERY == 0:
                self._look()
        self._look(weights=True)
        if self.recipe.loss == "fast" and self.epoch >= self.recipe.clean_epochs:
            self._guard(x, y)
        loss, accuracy = self.sums.means(self.fabric)
        clean, robust = self._validate()
        record = EpochRecord(
            epoch=self.epoch + 1,
            loss=loss,
            lr=self._rate(self._steps() - 1),
            train_robust=accuracy,
            val_clean=clean,
            val_robust=robust,
            seconds=time.monotonic() - began,
        )
        self.history.append(record)
        self.epoch, self.batch, self.elapsed = self.epoch + 1, 0, 0.0
        self.sums.clear()
        self._save()
        self._log()
        if self.on_epoch is not None and self.fabric.is_global_zero:
            self.on_epoch(record)

    def _train_batch(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Attack one batch and step on it; nothing but the attack waits for the device."""
        step, place = self._steps(), (self.epoch, self.batch)
        rank = self.fabric.global_rank
        objective = self.objective
        if self.clean is not None and self.epoch < self.recipe.clean_epochs:
            objective = self.clean
        if self.hook is not None:
            self.hook.before_batch(self.model, generator(self.seed, "hook", *place))
        if self.recipe.mixes:
            x, y = self.mixer(x, y, derive_seed(self.seed, "cutmix", *place))
        if self.recipe.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        self._seed_layers(derive_seed(self.seed, "layers", *place, rank))
        pictures: torch.Tensor | None
        try:
            with self.fabric.autocast(), whatever_rounds():
                attack_seed = derive_seed(self.seed, "attack", *place, rank)
                pictures = objective.perturb(self.model, x, y, attack_seed)
        except NonFiniteOutput as e:
            if self.fabric.world_size == 1:
                raise self._diverged("the network's output", step) from e
            # The other devices would wait for this one for ever; all stop at the next look.
            self.sums.mark(step)
            pictures = x
        lr, done = self._rate(step), 0
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        while pictures is not None:
            self._step(objective, x, pictures, y)
            done += 1
            pictures = objective.replay(x, pictures, done)

    def _step(
        self, objective: RobustLoss, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> None:
        """One step of the optimizer."""
        # None, not zero: SGD passes over weights without a gradient, so those of paths that a
        # supernet does not take are moved by neither momentum nor weight decay.
        self.optimizer.zero_grad(set_to_none=True)
        loss, logits = objective(self.forward, x, x_adv, y)
        self.fabric.backward(loss)
        if self.recipe.grad_clip is not None:
            self.fabric.clip_gradients(
                self.forward,
                self.stepper,
                max_norm=self.recipe.grad_clip,
                error_if_nonfinite=False,
            )
        self.stepper.step()
        if self.average is not None:
            self.average.update()
        self.sums.add(self._steps(), loss.detach(), logits.detach(), y)

    def _guard(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Stop if the network resists nothing but the one step that it is trained with."""
        step = self._steps() - 1
        seed = derive_seed(self.seed, "guard", self.epoch, self.fabric.global_rank)
        with self.fabric.autocast():
            counts = count_right(self.model, self.objective, self.threat, x, y, seed)
        one, many, n = self.fabric.all_reduce(counts, reduce_op="sum").tolist()
        if collapsed(one / n, many / n, self.data.num_classes):
            place = self.epoch + 1, step + 1, self._rate(step)
            raise TrainingCollapsed(*place, one_step=one / n, many_steps=many / n)

    def _seed_layers(self, seed: int) -> None:
        """Seed what dropout and its kind draw from; quicker than ``torch.manual_seed`` by 1 ms."""
        torch.default_generator.manual_seed(seed)
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _validate(self) -> tuple[float | None, float | None]:
        """Clean and robust accuracy on the search-validation split, of the averaged weights."""
        if not self.validate:
            return None, None
        average = nullcontext() if self.average is None else self.average.applied()
        self.model.eval()
        with average:
            found = self.validation(self.model)
            if found is None:
                raise self._diverged("the network's output", self._steps() - 1)
            if self.recipe.keep == "best":
                self.best.offer(self.model, found[1], self.history)
        return found

    def _look(self, *, weights: bool = False) -> None:
        """Stop if the loss of any step so far, or a weight, is NaN or infinite."""
        bad = self.sums.bad(self.fabric)
        if bad is not None:
            raise self._diverged("the loss", bad)
        if weights:
            norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
            if not torch.stack(list(norms)).isfinite().all():
                raise self._diverged("a weight", self._steps() - 1)

    def _diverged(self, what: str, step: int) -> TrainingDiverged:
        return TrainingDiverged(what, step // self.steps_per_epoch + 1, step + 1, self._rate(step))

    def _save(self) -> None:
        if self.folder is None or not self.fabric.is_global_zero:
            return
        tensors, state = capture(self.model, self.optimizer, self.average, self.sums)
        tensors |= self.best.tensors()
        state["training"] = self.identity
        state.update(epoch=self.epoch, batch=self.batch, elapsed=self.elapsed)
        state["history"] = [asdict(record) for record in self.history]
        if isinstance(self.hook, StatefulHook):
            state["hook"] = self.hook.state_dict()
        _checkpoint.save(self.folder, self._steps(), tensors, state)

    def _log(self) -> None:
        """Make all logs hold the epochs so far."""
        if self.fabric.is_global_zero:
            if self.folder is not None:
                write_curve(self.folder, self.history)
            write_logs(self.logs, self.identity, self.history)

    def _steps(self) -> int:
        """Steps done so far."""
        return self.epoch * self.steps_per_epoch + self.batch

    def _rate(self, step: int) -> float:
        return self.recipe.learning_rate(step, self.steps_per_epoch)
