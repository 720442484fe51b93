"""Drawing networks for a task, so that every evaluation goes to a network not seen before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nni_robust.policy import Policy
from nni_robust.sampling import Sample

from ._rl_learner import Rollout
from ._rl_tasks import Target

__all__ = ["draw_episodes"]

#: Repeats kept per wanted network: they cost nothing, and tell the policy where it stands.
_REPEATS = 3
#: Draws per wanted network after which no new one is looked for.
_PATIENCE = 40
#: Draws per wanted network without a new one after which the temperature rises, and by how much.
_HEAT_AFTER, _HEAT = 4, 1.5


def draw_episodes(
    policy: Policy,
    target: Target,
    number: int,
    rng: np.random.Generator,
    *,
    horizon: int,
    distinct: bool,
    known: Callable[[Sample], bool],
) -> list[Rollout]:
    """Draw episodes until they end in a number of new networks.

    Parameters
    ----------
    policy
        Who decides.
    target
        The task.
    number
        New networks wanted.
    rng
        Source of randomness.
    horizon
        Decisions per episode; after the first, numbers can only shrink.
    distinct
        Go on until `number` networks are new; otherwise stop after `number` episodes.
    known
        Whether a network has been evaluated for this task.

    Returns
    -------
    list
        Also episodes that ended in known networks: to leave them out would bend the gradient. Only
        so many of them; a policy that repeats itself a lot is asked for new ones only, at a rising
        temperature: one that was meta-trained may be so sure of itself that it would never look at
        what its new task needs. Fewer new ones than wanted where there are no more.
    """
    options = target.options
    context = target.context()
    start = policy.state(
        context, options.teacher, choices=options.choices, stem_stride=target.stem_stride
    )
    logits = policy.arrays(start)
    found: list[Rollout] = []
    new: list[Sample] = []
    repeats, barren, temperature = 0, 0, 1.0
    for _ in range(_PATIENCE * number if distinct else number):
        state, states, draws = start, [start], []
        hot = [head / temperature for head in logits]
        draws.append(options.draw(hot, rng, final=horizon == 1))
        for step in range(1, horizon):
            sample = draws[-1].sample
            state = policy.state(
                context,
                sample,
                options.cost(sample) if options.has_cost else None,
                choices=options.choices,
                stem_stride=target.stem_stride,
            )
            states.append(state)
            draws.append(
                options.draw(policy.arrays(state), rng, current=sample, final=step == horizon - 1)
            )
        sample = draws[-1].sample
        if sample in new or known(sample):
            repeats += 1
            barren += 1
            if barren % (_HEAT_AFTER * number) == 0:
                temperature *= _HEAT
            if distinct and repeats > _REPEATS * number:
                continue
        else:
            new.append(sample)
            barren = 0
        found.append(Rollout(target.key, states, draws))
        if distinct and len(new) == number:
            break
    return found
