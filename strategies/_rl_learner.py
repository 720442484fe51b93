"""How a policy learns from the rewards of its networks.

* ``vpg``: REINFORCE, the paper's figure says "VPG". One gradient step per update.
* ``a2c``: the same with a learned value as baseline.
* ``ppo``: several steps on the same networks, the change of each network's probability clipped.

With `imitation`, every step also raises the probability of the best networks of the task so far
(self-imitation; a cross-entropy method when it is alone). With a reward for each of few networks,
that is what makes a policy better than chance within a few hundred evaluations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nni_robust.policy import Draw, Policy, State, choice_log_probs

from ._rl_settings import Learning

__all__ = ["Learner", "Rollout"]


@dataclasses.dataclass
class Rollout:
    """One episode: the decisions that led to a network, and what it got.

    Parameters
    ----------
    task
        Key of the task.
    states, draws
        What was seen and decided at each step.
    reward
        Of the last network.
    advantage
        Reward compared to the task's baseline, set by :meth:`Learner.update`.
    log_prob, entropy
        When it was drawn, summed over its decisions.
    """

    task: str
    states: list[State]
    draws: list[Draw]
    reward: float = 0.0
    advantage: float = 0.0
    log_prob: float = 0.0
    entropy: float = 0.0


class Learner:
    """The optimiser of a policy, with a baseline and the best networks of each task.

    Parameters
    ----------
    policy
        Changed in place.
    settings
        How to learn.
    updates
        Number of updates over which the entropy bonus falls.
    """

    def __init__(self, policy: Policy, settings: Learning, updates: int) -> None:
        self.policy, self.settings, self.updates = policy, settings, max(updates, 1)
        self.baselines: dict[str, float] = {}
        self.elites: dict[str, list[Rollout]] = {}
        self.fresh()

    def fresh(self) -> None:
        """Forget the optimiser's moments."""
        self.optimizer = torch.optim.Adam(self.policy.network.parameters(), lr=self.settings.lr)

    def measure(self, rollouts: Sequence[Rollout]) -> None:
        """Fill in log-probabilities and entropies under the policy as it is."""
        with torch.no_grad():
            logs, entropies, _ = self._evaluate(rollouts)
        for rollout, log, entropy in zip(rollouts, logs.sum(1), entropies.sum(1), strict=True):
            rollout.log_prob, rollout.entropy = float(log), float(entropy)

    def update(self, rollouts: Sequence[Rollout], step: int) -> None:
        """Learn from one batch, which may hold several tasks; sets the advantages.

        Parameters
        ----------
        rollouts
            With rewards, and measured.
        step
            Number of the update, for the entropy bonus.
        """
        settings = self.settings
        self._remember(rollouts)
        values = None
        if settings.algorithm == "a2c":
            with torch.no_grad():
                values = self._evaluate(rollouts)[2]
        self._advantages(rollouts, values)
        advantages = torch.tensor([rollout.advantage for rollout in rollouts])
        rewards = torch.tensor([rollout.reward for rollout in rollouts])
        old = torch.tensor([rollout.log_prob for rollout in rollouts])
        elites, weights = self._elites({rollout.task for rollout in rollouts})
        share = min(step / max(self.updates - 1, 1), 1.0)
        bonus = settings.entropy[0] + share * (settings.entropy[1] - settings.entropy[0])
        for _ in range(settings.epochs if settings.algorithm == "ppo" else 1):
            logs, entropies, value = self._evaluate(rollouts)
            total = logs.sum(1)
            if settings.algorithm == "ppo":
                ratio = (total - old).exp()
                clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                loss = -torch.min(ratio * advantages, clipped * advantages).mean()
            else:
                loss = -(total * advantages).mean()
            loss = loss - bonus * entropies.sum(1).mean()
            if settings.algorithm == "a2c":
                loss = loss + 0.5 * (value - rewards).square().mean()
            if elites:
                imitated = self._evaluate(elites)[0].sum(1)
                loss = loss - settings.imitation * (weights * imitated).sum()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.network.parameters(), settings.grad_clip)
            self.optimizer.step()

    def _evaluate(self, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
        """(N, decisions) log-probabilities and entropies, (N,) values of the first states."""
        steps = max(len(rollout.draws) for rollout in rollouts)
        # Equal states, such as those of one task, pass through the network once.
        states: dict[int, int] = {}
        unique: list[State] = []
        for rollout in rollouts:
            for state in rollout.states:
                if id(state) not in states:
                    states[id(state)] = len(unique)
                    unique.append(state)
        logits, values = self.policy.logits(unique)
        logs, entropies = [], []
        for step in range(steps):
            rows = torch.tensor([states[id(rollout.states[step])] for rollout in rollouts])
            found = choice_log_probs(
                [head[rows] for head in logits],
                torch.from_numpy(np.stack([r.draws[step].indices for r in rollouts])),
                torch.from_numpy(np.stack([r.draws[step].mask for r in rollouts])),
            )
            logs.append(found[0])
            entropies.append(found[1])
        first = torch.tensor([states[id(rollout.states[0])] for rollout in rollouts])
        return torch.cat(logs, 1), torch.cat(entropies, 1), values[first]

    def _advantages(self, rollouts: Sequence[Rollout], values: Tensor | None) -> None:
        for task in dict.fromkeys(rollout.task for rollout in rollouts):
            own = [i for i, rollout in enumerate(rollouts) if rollout.task == task]
            rewards = np.array([rollouts[i].reward for i in own])
            mean = float(rewards.mean())
            baseline = self.baselines.get(task, mean)
            spread = float(rewards.std()) + 1e-3
            for i, reward in zip(own, rewards, strict=True):
                base = baseline if values is None else float(values[i])
                rollouts[i].advantage = float((reward - base) / spread)
            decay = self.settings.baseline_decay
            self.baselines[task] = decay * baseline + (1 - decay) * mean

    def _remember(self, rollouts: Sequence[Rollout]) -> None:
        """Keep the best different networks of each task."""
        if not self.settings.imitation:
            return
        for rollout in rollouts:
            kept = self.elites.setdefault(rollout.task, [])
            if any(other.draws[-1].sample == rollout.draws[-1].sample for other in kept):
                continue
            kept.append(rollout)
            kept.sort(key=lambda other: -other.reward)
            del kept[self.settings.elites :]

    def _elites(self, tasks: set[str]) -> tuple[list[Rollout], Tensor]:
        """The best networks of these tasks, and their weights: 1 in sum for each task."""
        found: list[Rollout] = []
        weights: list[float] = []
        for task in sorted(tasks):
            kept = self.elites.get(task, [])
            found += kept
            weights += [1 / (len(kept) * len(tasks)) for _ in kept]
        return found, torch.tensor(weights)

    def state(self) -> dict[str, Any]:
        """Plain values: baselines (weights and optimiser are made again by replay)."""
        return {"baselines": dict(self.baselines)}
