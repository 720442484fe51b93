"""The search of RNAS-CL: weights, architecture and tutors of one relaxed network.

Each epoch steps the weights on most of the training pictures and then the logits (of the choices
and of the tutors) on the rest. The two parts share no picture, unlike in the released code, which
shuffles them anew every epoch; the test split plays no part, where the released code validates on
it.

Loss of the logits: (CE + kl * KL(teacher || student) + gamma * distance of the maps), with the cost
of the expected network multiplied or added (:class:`~nni_robust.distillation.CostTerm`). The
weights' loss is the same without the cost, which does not depend on them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust.config import as_mapping
from nni_robust.data import DataSplits
from nni_robust.data.seeding import derive_seed, generator
from nni_robust.distillation.costs import CostModel
from nni_robust.distillation.maps import MapSession, describe_layers, distances
from nni_robust.distillation.networks import frozen_weights
from nni_robust.distillation.observe import observe
from nni_robust.distillation.outcome import SearchOutcome, found
from nni_robust.distillation.pictures import split_pictures
from nni_robust.distillation.settings import SearchSettings
from nni_robust.distillation.state import load_search, save_search
from nni_robust.distillation.taps import find_taps
from nni_robust.distillation.tutors import TutorMatrix
from nni_robust.errors import UserError
from nni_robust.relaxation import Relaxed, gumbel_weights, start_logits, temperature
from nni_robust.threat import ThreatModel
from nni_robust.training._records import TrainingDiverged
from nni_robust.training.losses import build_loss, kl_divergence
from nni_robust.training.schedules import Schedule

__all__ = ["search_tutors"]


def search_tutors(
    relaxed: Relaxed,
    teachers: Sequence[nn.Module],
    data: DataSplits,
    settings: SearchSettings,
    threat: ThreatModel,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    budget: Mapping[str, float] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> SearchOutcome:
    """Search tutors, and the architecture where there is something to choose.

    Parameters
    ----------
    relaxed
        The space, see :func:`nni_robust.relaxation.relax`, or :class:`Unrelaxed`.
    teachers
        One or more frozen networks in evaluation mode.
    data
        Only its training split is used.
    settings, threat
        How; the threat is that of an attack in training, where there is one.
    folder
        Checkpoints; a folder with those of the same search continues it exactly.
    seed
        Of everything random.
    device
        Where to compute.
    budget
        Costs that stand for the target where the settings have none.
    on_epoch
        Called with the record of each epoch.

    Raises
    ------
    UserError
        If settings, networks and data do not go together, or the folder holds another search.
    TrainingDiverged
        If the loss becomes NaN or infinite.
    """
    search = _Search(relaxed, teachers, data, settings, threat, seed, device, budget or {})
    where = None if folder is None else Path(folder)
    if where is not None:
        search.restore(where)
    while search.epoch < settings.weights.epochs:
        record = search.run_epoch()
        if where is not None:
            search.save(where)
        if on_epoch is not None:
            on_epoch(record)
    return search.outcome()


class _Search:
    def __init__(
        self,
        relaxed: Relaxed,
        teachers: Sequence[nn.Module],
        data: DataSplits,
        settings: SearchSettings,
        threat: ThreatModel,
        seed: int,
        device: torch.device | str,
        budget: Mapping[str, float],
    ) -> None:
        if not teachers:
            raise UserError("the search for tutors needs a teacher; set task.teacher")
        self.relaxed, self.settings, self.seed = relaxed, settings, seed
        self.recipe = settings.weights
        self.device = torch.device(device)
        self.network = relaxed.network.to(self.device)
        self.teachers = [t.to(self.device).eval().requires_grad_(False) for t in teachers]
        self.shape = data.input_shape
        self.augment = data.train.augment if self.recipe.augment is None else self.recipe.augment
        for_weights, for_logits = split_pictures(data.train, settings.share, seed)
        if self.recipe.batch_size > len(for_weights):
            raise UserError(
                f"weights.batch_size: {self.recipe.batch_size} is more than the {len(for_weights)} "
                "pictures for the weights"
            )
        self.parts = {"weights": for_weights.to(self.device), "logits": for_logits.to(self.device)}
        self.taps = find_taps(self.network, settings.taps)
        self.teacher_taps = [find_taps(t, settings.teacher_taps) for t in self.teachers]
        self.sessions = [
            MapSession(t, taps, settings.maps)
            for t, taps in zip(self.teachers, self.teacher_taps, strict=True)
        ]
        self.student = MapSession(self.network, self.taps, settings.maps)
        self.objective = build_loss(self.recipe, threat, changing=True)
        self.logits = start_logits(relaxed.choices, self.device)
        self.tutors = TutorMatrix(
            len(self.taps),
            sum(map(len, self.teacher_taps)),
            settings.reduction,
            settings.debias,
        ).to(self.device)
        self.cost = CostModel(relaxed, settings.cost, self.shape, self.device, budget)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "weights": torch.optim.SGD(
                self.network.parameters(),
                lr=self.recipe.lr,
                momentum=self.recipe.momentum,
                nesterov=self.recipe.nesterov,
                weight_decay=self.recipe.weight_decay,
            ),
            # Decay would outweigh the small gradients of the tutors, and undo them.
            "logits": torch.optim.Adam(
                [
                    {"params": list(self.logits.values()), "weight_decay": settings.choice_decay},
                    {"params": [self.tutors.logits], "weight_decay": 0.0},
                ],
                lr=settings.logits_lr,
            ),
        }
        self.epoch, self.history = 0, list[dict[str, float]]()

    def run_epoch(self) -> dict[str, float]:
        """One epoch: all steps of the weights, then all steps of the logits."""
        began = time.monotonic()
        tau = temperature(
            self.epoch,
            self.recipe.epochs,
            initial=self.settings.tau,
            decay=self.settings.tau_decay,
        )
        self.network.train()
        weights = self._pass("weights", tau)
        with frozen_weights(self.network):
            logits = self._pass("logits", tau)
        record = {
            "epoch": float(self.epoch + 1),
            "tau": tau,
            "loss": weights["loss"],
            **{key: logits[key] for key in ("ce", "kl", "attn", "cost", "accuracy")},
            "entropy_tutors": self.tutors.entropy(),
            "entropy_choices": self._choice_entropy(),
            "seconds": round(time.monotonic() - began, 3),
        }
        bad = next((key for key, value in record.items() if not math.isfinite(value)), None)
        if bad is not None:
            raise TrainingDiverged(f"the search's {bad}", self.epoch + 1, 0, self.recipe.lr)
        self.history.append(record)
        self.epoch += 1
        return record

    def _pass(self, part: str, tau: float) -> dict[str, float]:
        """Go once through the pictures of a part; means of what the steps saw."""
        pictures, optimizer = self.parts[part], self.optimizers[part]
        size = min(self.recipe.batch_size, len(pictures))
        steps = len(pictures) // size
        sums: dict[str, Tensor] = {}
        stream = pictures.batches(
            size,
            shuffle=True,
            seed=derive_seed(self.seed, "search data", part),
            epoch=self.epoch,
            augment=self.augment,
            drop_last=True,
        )
        for number, (x, y) in enumerate(stream):
            done = self.epoch + number / steps
            for group in optimizer.param_groups:
                group["lr"] = self._rate(part, done)
            for name, value in self._step(part, x, y, tau, (self.epoch, number)).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return {name: float(value) / steps for name, value in sums.items()}

    def _rate(self, part: str, epoch: float) -> float:
        if part == "weights":
            return self.recipe.learning_rate(int(epoch * 1000), 1000)
        return Schedule("cosine", self.settings.logits_lr, self.recipe.epochs)(epoch)

    def _step(
        self, part: str, x: Tensor, y: Tensor, tau: float, place: tuple[int, int]
    ) -> dict[str, Tensor]:
        """One step of the weights or of the logits, on one draw of all choices and tutors."""
        settings, optimizer = self.settings, self.optimizers[part]
        noise = generator(self.seed, "draw", part, *place)
        choices = gumbel_weights(self.logits, tau, noise)
        tutors = self.tutors.sample(tau, noise)
        fixed = {label: w.detach() for label, w in choices.items()}
        self.relaxed.set_weights(fixed)
        torch.manual_seed(derive_seed(self.seed, "layers", part, *place))
        x_adv = self.objective.perturb(
            self.network, x, y, derive_seed(self.seed, "attack", part, *place)
        )
        if part == "logits":
            self.relaxed.set_weights(choices)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16-mixed"
        ):
            seen = observe(self.objective, self._forward, x, x_adv, y, self.student, self.sessions)
        attn = self.tutors.loss(
            distances(seen.clean_maps, torch.cat(seen.teacher_maps)),
            tutors if part == "logits" else tutors.detach(),
        )
        kl = torch.stack(
            [
                kl_divergence(logits.float(), seen.clean_logits.float()).mean()
                for logits in seen.teacher_logits
            ]
        ).mean()
        loss = seen.loss + settings.kl * kl + settings.gamma * attn
        cost = self.cost.expected(choices)
        total = self.cost.applied(loss, cost) if part == "logits" else loss
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        if part == "weights" and self.recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.grad_clip)
        optimizer.step()
        return {
            "loss": total.detach(),
            "ce": seen.loss.detach(),
            "kl": kl.detach(),
            "attn": attn.detach(),
            "cost": cost.detach(),
            "accuracy": (seen.logits.argmax(1) == y).float().mean(),
        }

    def _forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(x) for x in batches)

    def _choice_entropy(self) -> float:
        """Mean entropy of the choices in nats."""
        shares = [w.detach().softmax(0) for w in self.logits.values()]
        values = [float(-(p * p.clamp_min(1e-30).log()).sum()) for p in shares]
        return sum(values) / len(values) if values else 0.0

    def _identity(self) -> dict[str, Any]:
        return {
            "settings": as_mapping(self.settings),
            "seed": self.seed,
            "choices": {label: len(values) for label, values in self.relaxed.choices.items()},
            "taps": [len(self.taps), *map(len, self.teacher_taps)],
        }

    def save(self, folder: Path) -> None:
        """Write the checkpoint of the epoch."""
        state = {"epoch": self.epoch, "history": self.history, "cost": self.cost.table}
        save_search(folder, self.epoch, self._tensors(), self.optimizers, state, self._identity())

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        state = load_search(folder, self._tensors(), self.optimizers, self._identity())
        if state is not None:
            self.epoch, self.history = int(state["epoch"]), list(state["history"])
            self.cost.table = state["cost"]

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{f"network.{name}": t for name, t in self.network.state_dict().items()},
            **{f"choices.{label}": t.data for label, t in self.logits.items()},
            "tutors": self.tutors.logits.data,
        }

    def outcome(self) -> SearchOutcome:
        """What was found, without any noise."""
        students = describe_layers(self.network, self.taps, self.shape)
        layers = [
            {**layer, "teacher": number}
            for number, (network, taps) in enumerate(
                zip(self.teachers, self.teacher_taps, strict=True)
            )
            for layer in describe_layers(network, taps, self.shape)
        ]
        sample = dict(self.relaxed.sample(self.logits)) if self.logits else {}
        return found(sample, self.logits, self.tutors, students, layers, self.history)
