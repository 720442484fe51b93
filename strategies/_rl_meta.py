"""Meta-training: updates of the policy on tasks that are drawn from many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nni_robust.data.seeding import derive_seed

from ._rl_learner import Learner
from ._rl_rounds import Rounds
from ._rl_settings import Learning
from ._rl_tasks import Target

__all__ = ["META", "batches", "meta_train"]

#: Ways to meta-train.
META = ("multitask", "reptile", "off")

#: Reptile: updates on one task, and the share of the way that the policy then moves.
_INNER, _OUTER = 3, 0.5


def batches(meta: str, updates: int) -> int:
    """Times that networks are drawn for each task of an update, in all updates."""
    return updates * (_INNER if meta == "reptile" else 1)


def meta_train(
    rounds: Rounds,
    learning: Learning,
    targets: Sequence[Target],
    *,
    meta: str,
    updates: int,
    tasks: int,
    seed: int,
) -> None:
    """Train the policy on drawn tasks, as far as the budget goes.

    Parameters
    ----------
    rounds, learning
        Updates, and how the policy learns from them.
    targets
        All tasks.
    meta
        ``"multitask"`` or ``"reptile"``.
    updates, tasks
        Number of updates, and of tasks in each.
    seed
        Of the draws.
    """
    learner = Learner(rounds.policy, learning, batches(meta, updates))
    for update in range(updates):
        rng = np.random.default_rng(derive_seed(seed, "tasks", update))
        drawn = rng.choice(len(targets), min(tasks, len(targets)), replace=False)
        chosen = [targets[int(place)] for place in drawn]
        if meta == "multitask":
            going = rounds.update(learner, chosen, "meta", update)
        else:
            going = _reptile(rounds, learner, chosen, update)
        if not going:
            return


def _reptile(rounds: Rounds, learner: Learner, targets: Sequence[Target], update: int) -> bool:
    """Move half of the way to the mean of where updates on single tasks lead."""
    network = rounds.policy.network
    start = {name: value.clone() for name, value in network.state_dict().items()}
    moved = {name: value.new_zeros(value.shape) for name, value in start.items()}
    for target in targets:
        network.load_state_dict(start)
        learner.fresh()
        for inner in range(_INNER):
            if not rounds.update(learner, [target], "meta", update * _INNER + inner):
                network.load_state_dict(start)
                return False
        for name, value in network.state_dict().items():
            moved[name] += (value - start[name]) / len(targets)
    network.load_state_dict({name: start[name] + _OUTER * moved[name] for name in start})
    return True
