"""One update of the policy: networks are drawn, the new ones evaluated, rewards learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from nni_robust.data.seeding import derive_seed
from nni_robust.policy import Policy
from nni_robust.sampling import Sample
from nni_robust.store import content_key

from ._rl_episodes import draw_episodes
from ._rl_learner import Learner, Rollout
from ._rl_settings import FAILED, Rewards, Score, rewards_of
from ._rl_tasks import Target

__all__ = ["Rounds"]

Metrics = dict[str, Any] | None


class Rounds:
    """The updates of a search, and all that is known from them.

    Parameters
    ----------
    rewards
        What a network is worth.
    rollouts, horizon, distinct, seed
        See :class:`.rl_compressor.RLCompressor`.
    searches
        Whether there are updates on the experiment's own task.

    Attributes
    ----------
    steps
        The log, an entry per network drawn.
    known
        Metrics of each network of each task; None where its trial failed.
    loaded
        Those of an earlier process, which become known when they are drawn again.
    """

    policy: Policy
    own: Target

    def __init__(
        self,
        rewards: Rewards,
        *,
        rollouts: int,
        horizon: int,
        distinct: bool,
        seed: int,
        searches: bool,
    ) -> None:
        self.rewards, self.rollouts, self.horizon = rewards, rollouts, horizon
        self.distinct, self.seed, self.searches = distinct, seed, searches
        self.steps: list[dict[str, Any]] = []
        self.known: dict[str, Metrics] = {}
        self.loaded: dict[str, Metrics] = {}

    def begin(
        self,
        policy: Policy,
        own: Target,
        evaluate: Callable[[list[Sample], list[Any]], tuple[list[Metrics], int]],
        evaluator_for: Callable[[Target, str], Any],
    ) -> None:
        """Take up the policy and the experiment.

        Parameters
        ----------
        policy
            The one that learns.
        own
            The experiment's task.
        evaluate
            From networks and their evaluators to metrics, and how many there was budget for.
        evaluator_for
            From a task and a phase to an evaluator.
        """
        self.policy, self.own = policy, own
        self.evaluate, self.evaluator_for = evaluate, evaluator_for

    def update(self, learner: Learner, targets: Sequence[Target], stage: str, number: int) -> bool:
        """Draw, evaluate, learn; False where there was no budget for it, or nothing new is left."""
        batch: list[tuple[Target, list[Rollout]]] = []
        for target in targets:
            seed = derive_seed(self.seed, stage, number, target.key)
            episodes = draw_episodes(
                self.policy,
                target,
                self.rollouts,
                np.random.default_rng(seed),
                horizon=self.horizon,
                distinct=self.distinct,
                known=partial(self.is_known, target),
            )
            batch.append((target, episodes))
        fresh = {
            _key(target, rollout.draws[-1].sample)
            for target, rollouts in batch
            for rollout in rollouts
        } - set(self.known)
        if not self._measure(batch, stage):
            return False
        rollouts = [rollout for _, episodes in batch for rollout in episodes]
        rewards = [self._reward(target, episodes) for target, episodes in batch]
        learner.measure(rollouts)
        learner.update(rollouts, number)
        for (target, episodes), both in zip(batch, rewards, strict=True):
            for place, rollout in enumerate(episodes):
                sample = rollout.draws[-1].sample
                key = _key(target, sample)
                metrics = self.known[key] or {}
                self.steps.append(
                    {
                        "stage": stage,
                        "update": number,
                        "rollout": place,
                        "task": target.name,
                        "task_key": target.key,
                        "sample": sample,
                        "repeat": key not in fresh,
                        "log_prob": rollout.log_prob,
                        "entropy": rollout.entropy,
                        "reward": rollout.reward,
                        **{f"reward_{name}": value for name, value in both[place].items()},
                        "advantage": rollout.advantage,
                        "robust": metrics.get("default"),
                        "clean": metrics.get("clean"),
                        "cost": target.cost(sample, metrics, self.rewards.compression),
                    }
                )
                fresh.discard(key)
        return True

    def is_known(self, target: Target, sample: Sample) -> bool:
        """Whether a network has been evaluated for a task."""
        return _key(target, sample) in self.known

    def _measure(self, batch: Sequence[tuple[Target, list[Rollout]]], stage: str) -> bool:
        """Evaluate what is not known yet, all of it side by side."""
        keys: list[str] = []
        samples: list[Sample] = []
        evaluators: list[Any] = []
        answered: dict[str, dict[str, Any] | None] = {}
        for target, rollouts in batch:
            # Only networks for the experiment's own task can win, if there is a search for it.
            rival = stage == "search" or target is self.own or not self.searches
            evaluator = self.evaluator_for(target, "candidate" if rival else "meta")
            for rollout in rollouts:
                sample = rollout.draws[-1].sample
                key = _key(target, sample)
                if key in self.loaded and key not in self.known:
                    answered[key] = self.loaded[key]
                elif key not in self.known and key not in keys:
                    keys.append(key)
                    samples.append(sample)
                    evaluators.append(evaluator)
        found, submitted = self.evaluate(samples, evaluators)
        for key, metrics in zip(keys[:submitted], found, strict=False):
            self.known[key] = metrics
        self.known |= answered
        return submitted == len(samples)

    def _reward(self, target: Target, rollouts: Sequence[Rollout]) -> list[dict[str, float]]:
        """Set the rewards of a task's rollouts; returns both forms of each."""
        scores: list[Score | None] = []
        for rollout in rollouts:
            sample = rollout.draws[-1].sample
            metrics = self.known[_key(target, sample)]
            scores.append(None if metrics is None else self.score(target, sample, metrics))
        good = [score for score in scores if score is not None]
        if target.reference is None and good:
            teacher = target.teacher_cost
            target.reference = Score(
                float(np.mean([score.robust for score in good])),
                float(np.mean([score.clean for score in good])),
                None if teacher is None else getattr(teacher, self.rewards.compression),
            )
        both = []
        for rollout, score in zip(rollouts, scores, strict=True):
            if score is None or target.reference is None:
                values = {"budgeted": FAILED, "n2n": FAILED}
            else:
                values = rewards_of(
                    score, target.reference, self.rewards, compresses=target.compresses
                )
            rollout.reward = values[self.rewards.reward]
            both.append(values)
        return both

    def score(self, target: Target, sample: Sample, metrics: Mapping[str, Any]) -> Score:
        """Accuracies and cost of a network."""
        what = self.rewards.compression
        return Score.of(metrics, target.clean, target.cost(sample, metrics, what))


def _key(target: Target, sample: Mapping[str, Any]) -> str:
    return content_key(target.key, dict(sample))
