"""Reinforced compression of a teacher: RC-NAS's scheme, on any NNI space of categorical choices.

Paper: Wang, Sapkota, Tao, Yu, "Reinforced Compressive Neural Architecture Search for Versatile
Adversarial Robustness", KDD 2024 (https://arxiv.org/abs/2406.06792). Its repository (wdr123/robN2N,
commit 4fd9e25) holds no search. What is known of it, from abstract and figures: a policy sees the
task (data set, attack, teacher, budget), an LSTM reads the teacher stage by stage, heads decide
each stage, the network's accuracy and cost are the reward; the policy is trained on many tasks,
then fine-tuned on the one at hand. Rewards, masks and learning rules are ours; N2N learning (Ashok
et al., ICLR 2018), which the repository names as its model, gave the second reward.

1. Each task's teacher is trained or loaded where it can be, and scored by the protocol of the
   candidates: rewards compare with that.
2. Meta-training: tasks are drawn, each update evaluates networks for several of them.
3. The policy is trained, or fine-tuned, on the experiment's own task.

Differences from N2N, on purpose: networks over the budget are never drawn instead of punished; no
evaluation is spent on a network whose score is known; the best networks so far are imitated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nni_robust.config import as_mapping, parse
from nni_robust.errors import UserError
from nni_robust.policy import Policy, load_policy, read_choices, save_policy
from nni_robust.sampling import Sample
from nni_robust.store import write_text

from ._phases import PhasedStrategy
from ._rl_learner import Learner
from ._rl_meta import META, batches, meta_train
from ._rl_reference import REFERENCES, find_reference
from ._rl_rounds import Rounds
from ._rl_settings import Learning, Rewards, one_of
from ._rl_tasks import Target, budget_of, most_tasks, resolve_tasks

__all__ = ["RLCompressor"]

_FROM_SCRATCH, _FINE_TUNING = 40, 5


class RLCompressor(PhasedStrategy):
    """Learn a policy that proposes small robust networks for a task.

    Works on any NNI space whose choices are categorical, with any evaluator that has ``task`` and
    ``variant(task=…, phase=…)``. Numbers (depths, widths) are decided as shares of the teacher's.
    Costs are exact where the space has ``cost(sample, input_shape)``; otherwise networks are
    counted when a budget asks for it.

    Parameters
    ----------
    updates
        Updates of the policy on the experiment's task. None is 40, or 5 where `policy` or
        meta-training came before (the paper's example has M=5). 0 only trains on `tasks`.
    rollouts
        New networks per update and task; they are evaluated side by side.
    algorithm, lr, entropy, baseline_decay, grad_clip, epochs, clip, imitation, elites
        How the policy learns. ``algorithm`` is ``vpg``, ``ppo`` or ``a2c``; `entropy` is the weight
        of the entropy bonus at the first and last update; `epochs` and `clip` are of ``ppo``;
        `imitation` weighs the best `elites` networks so far, 0 leaves them out.
    distinct
        Draw until `rollouts` networks are new. A network drawn again is not evaluated again in
        either case, and its known reward counts.
    reward, lam, kappa, compression
        ``budgeted``: ten times the gain in accuracy over the reference plus `kappa` times the
        compression, at least -1; ``n2n``: the accuracy relative to the reference times the
        compression (formulas: :func:`._rl_settings.rewards_of`). Both are logged. `lam` weighs
        robust against clean accuracy, `kappa` the compression of ``macs`` or ``params``. None: 0.8
        and 0.3 where the task has a teacher or a budget; otherwise there is nothing to compress,
        and the score alone counts.
    reference
        Accuracies that rewards compare with. ``protocol``: those of the teacher's architecture
        under the protocol of the candidates, one trial per task. ``teacher``: those of the trained
        teacher. ``batch``: the mean of the first batch. None is ``protocol`` where the task has a
        teacher or a budget, else ``batch``.
    horizon
        Decisions per network; after the first, numbers can only shrink.
    budget
        ``"5G"`` (MACs) or a mapping as in a task; None is the task's.
    minimum
        Least values by role or label, such as ``{depth: 2, stage3/width: 4}``.
    policy
        Folder of a policy to begin with (or a run folder that holds one).
    tasks
        Tasks to meta-train on. A list: each item is the name of a task, the path of a task file, or
        a mapping of the fields in which the task differs from the experiment's. Or a mapping of
        buffers, whose combinations are the tasks: a field's name to its values, as in
        ``attack: [clean, fgsm, pgd10]``, or any other name to mappings of fields that go together,
        as in ``network: [{teacher: …, budget: …}, …]``. None: no meta-training.
    holdout
        Tasks that are left out of `tasks`, in the same forms.
    meta
        ``multitask``: each update is on several tasks at once. ``reptile``: the policy moves half
        of the way to where three updates on a task lead it. ``off``: `tasks` are not used. None is
        ``multitask`` where there are tasks.
    meta_updates, tasks_per_update
        Length of the meta-training, and tasks of one update.
    use_lips
        Tell the policy the local Lipschitz value of a trained teacher.
    hidden, keep_bias
        Width of the policy's layers, and its initial wish to keep things: see
        :class:`nni_robust.policy.Policy`.
    seed
        Of policy and draws.

    Raises
    ------
    UserError
        On a setting that is not allowed.
    """

    name = "rl-compressor"
    needs = ("task", "variant")

    def __init__(
        self,
        *,
        updates: int | None = None,
        rollouts: int = 5,
        algorithm: str = "vpg",
        lr: float = 0.006,
        entropy: Sequence[float] = (0.03, 0.03),
        baseline_decay: float = 0.9,
        grad_clip: float = 1.0,
        epochs: int = 4,
        clip: float = 0.2,
        imitation: float = 0.5,
        elites: int = 5,
        distinct: bool = True,
        reward: str = "budgeted",
        lam: float | None = None,
        kappa: float | None = None,
        compression: str = "macs",
        reference: str | None = None,
        horizon: int = 1,
        budget: str | float | Mapping[str, Any] | None = None,
        minimum: Mapping[str, float] | None = None,
        policy: str | None = None,
        tasks: Sequence[Any] | Mapping[str, Any] | None = None,
        holdout: Sequence[Any] | None = None,
        meta: str | None = None,
        meta_updates: int = 75,
        tasks_per_update: int = 4,
        use_lips: bool = True,
        hidden: int = 64,
        keep_bias: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.learning = parse(
            Learning,
            {
                "algorithm": algorithm,
                "lr": lr,
                "entropy": entropy,
                "baseline_decay": baseline_decay,
                "grad_clip": grad_clip,
                "epochs": epochs,
                "clip": clip,
                "imitation": imitation,
                "elites": elites,
            },
            "strategy",
        )
        self.rewards = parse(
            Rewards,
            {"reward": reward, "lam": lam, "kappa": kappa, "compression": compression},
            "strategy",
        )
        one_of("meta", meta, (*META, None))
        one_of("reference", reference, (*REFERENCES, None))
        self.meta = meta or ("off" if tasks is None else "multitask")
        if self.meta != "off" and tasks is None:
            raise UserError(f"strategy.tasks is missing; strategy.meta: {self.meta} needs tasks")
        self.meta_updates = meta_updates if self.meta != "off" else 0
        if updates is None:
            updates = _FINE_TUNING if policy is not None or self.meta_updates else _FROM_SCRATCH
        self.updates, self.rollouts = updates, rollouts
        self.tasks_per_update, self.hidden, self.keep_bias = tasks_per_update, hidden, keep_bias
        for name, value, least in (
            ("updates", updates, 0 if self.meta_updates else 1),
            ("rollouts", rollouts, 1),
            ("horizon", horizon, 1),
            ("meta_updates", meta_updates, 1),
            ("tasks_per_update", tasks_per_update, 1),
            ("hidden", hidden, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(
                    f"strategy.{name}: {value!r} is not allowed; a whole number >= {least} is"
                )
        self.reference, self.use_lips = reference, use_lips
        self.budget, self.minimum, self.seed = budget, dict(minimum or {}), seed
        self.given_policy, self.given_tasks, self.holdout = policy, tasks, list(holdout or [])
        self.rounds = Rounds(
            self.rewards,
            rollouts=rollouts,
            horizon=horizon,
            distinct=distinct,
            seed=seed,
            searches=updates > 0,
        )

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The log, an entry per network drawn."""
        return self.rounds.steps

    @property
    def candidates(self) -> int:
        """Most networks that are evaluated."""
        return self.rollouts * (
            batches(self.meta, self.meta_updates) * self._concurrent() + self.updates
        )

    @property
    def trials(self) -> int:
        """Most models that are submitted: candidates, teachers, and their references."""
        return self.candidates + 2 * (1 + self._most_tasks())

    def _most_tasks(self) -> int:
        return 0 if self.meta == "off" else most_tasks(self.given_tasks)

    def _concurrent(self) -> int:
        return min(self.tasks_per_update, self._most_tasks())

    def extra_repr(self) -> str:
        return f"updates={self.updates}, rollouts={self.rollouts}, seed={self.seed}"

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        super()._initialize(model_space, engine)
        evaluator = model_space.evaluator
        self.target = Target(budget_of(self.budget, evaluator.task), model_space, self.minimum)
        self.meta_targets: list[Target] = []
        if self.meta != "off":
            left_out = (
                resolve_tasks(self.holdout, evaluator.task, "strategy.holdout")
                if self.holdout
                else []
            )
            tasks = resolve_tasks(self.given_tasks, evaluator.task, "strategy.tasks")
            kept = [task for task in tasks if task not in left_out]
            if not kept:
                raise UserError("strategy.holdout leaves no task of strategy.tasks to train on")
            for task in kept:
                target = Target(task, model_space, self.minimum)
                self.meta_targets.append(self.target if target.key == self.target.key else target)
        choices = read_choices(model_space)
        if self.given_policy is not None:
            self.policy = load_policy(self.given_policy)
            self.policy.check(choices)
        else:
            self.policy = Policy(
                choices, hidden=self.hidden, keep_bias=self.keep_bias, seed=self.seed
            )
        self.rounds.begin(self.policy, self.target, self._evaluate, self._evaluator)
        return model_space

    def _evaluate(
        self, samples: list[Sample], evaluators: list[Any]
    ) -> tuple[list[dict[str, Any] | None], int]:
        """Metrics of networks, and how many of them there was budget for."""
        before = len(self._submitted)
        found = self.evaluate(samples, evaluators)
        return found, len(self._submitted) - before

    def _run(self) -> None:
        targets = list(dict.fromkeys([*self.meta_targets, *([self.target] * (self.updates > 0))]))
        for target in targets:
            find_reference(
                self,
                self.rounds,
                target,
                reference=self.reference,
                use_lips=self.use_lips,
                seed=self.seed,
            )
        values = [target.lipschitz for target in targets if target.lipschitz is not None]
        if values:
            self.policy.lipschitz = float(np.mean(values))
        if self.meta_updates:
            meta_train(
                self.rounds,
                self.learning,
                self.meta_targets,
                meta=self.meta,
                updates=self.meta_updates,
                tasks=self.tasks_per_update,
                seed=self.seed,
            )
        learner = Learner(self.policy, self.learning, self.updates)
        for update in range(self.updates):
            if not self.rounds.update(learner, [self.target], "search", update):
                break
        known = self.rounds.known
        if self.steps and all(metrics is None for metrics in known.values()):
            raise UserError(
                f"zero candidates left: all {len(known)} failed; see their reasons in the "
                "store or in NNI's web UI"
            )

    def _evaluator(self, target: Target, phase: str) -> Any:
        """The evaluator for a task."""
        evaluator = self.model_space.evaluator
        changes: dict[str, Any] = {}
        if phase != getattr(evaluator, "phase", "candidate"):
            changes["phase"] = phase
        if target is not self.target:
            # A budget does not change a score: tasks that differ in it share their trials.
            changes["task"] = as_mapping(target.task) | {"budget": None}
            if target.task.attack is not None and hasattr(evaluator, "attacks"):
                changes["attacks"] = None  # the task's
        if target.teacher_key is not None and hasattr(evaluator, "teacher"):
            changes["teacher"] = target.teacher_key
        return evaluator.variant(**changes) if changes else evaluator

    def winner(self) -> dict[str, Any] | None:
        """The network of the highest reward for the experiment's own task, with its log entry."""
        own = [
            step
            for step in self.steps
            if step["task_key"] == self.target.key and step["robust"] is not None
        ]
        return max(own, key=lambda step: step["reward"], default=None)

    def final_settings(self) -> dict[str, Any]:
        """What the final networks get besides their recipe: the key of the trained teacher."""
        known = self.target.teacher_key is not None
        if known and hasattr(self.model_space.evaluator, "teacher"):
            return {"teacher": self.target.teacher_key}
        return {}

    def export(self, run: Path) -> None:
        """Write ``rl_steps.jsonl`` and the folder ``policy``."""
        lines = [json.dumps(step, allow_nan=False) + "\n" for step in self.steps]
        write_text(Path(run) / "rl_steps.jsonl", "".join(lines))
        save_policy(
            self.policy,
            Path(run) / "policy",
            {
                "tasks": sorted({step["task"] for step in self.steps}),
                "evaluations": len(self.rounds.known),
                "meta": self.meta,
                "updates": self.updates,
                "begun_with": self.given_policy,
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values: all metrics known so far. The rest follows from them and the seed."""
        return {"known": {**self.rounds.loaded, **self.rounds.known}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: the same search, without evaluating what is known."""
        self.rounds.loaded = dict(state_dict["known"])
