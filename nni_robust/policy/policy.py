"""A policy over architectures: what it proposes for a task, and with which probability."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nni_robust.cost import Cost, measure_cost
from nni_robust.data.seeding import derive_seed
from nni_robust.errors import UserError
from nni_robust.policy.choices import Choice, read_choices, same_value
from nni_robust.policy.context import Context, features
from nni_robust.policy.network import PolicyNetwork
from nni_robust.policy.options import Draw, Options
from nni_robust.sampling import Sample
from nni_robust.task import Budget, Task

__all__ = ["Policy", "State", "choice_log_probs", "options_for", "teacher_sample"]


@dataclasses.dataclass(frozen=True)
class State:
    """A network to be changed and the task it is changed for, as tensors.

    Parameters
    ----------
    features
        (positions, F), see :func:`nni_robust.policy.context.features`.
    context
        (CONTEXT,), see :class:`nni_robust.policy.Context`.
    """

    features: Tensor
    context: Tensor


class Policy:
    """Probabilities of architectures for a task.

    Parameters
    ----------
    choices
        Of the space it is for. Ordered choices may have other values in other spaces.
    hidden
        Width of its layers.
    keep_bias
        See :class:`nni_robust.policy.network.PolicyNetwork`.
    seed
        Of the initial weights.

    Attributes
    ----------
    lipschitz
        Mean Lipschitz value of the teachers it was trained with, which stands for an unknown one.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        hidden: int = 64,
        keep_bias: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.choices = list(choices)
        self.settings = {"hidden": hidden, "keep_bias": keep_bias, "seed": seed}
        staged = any(choice.role != choice.label for choice in self.choices)
        self.roles = sorted({choice.role for choice in self.choices}) if staged else []
        self.lipschitz: float | None = None
        self.network = PolicyNetwork(
            self.choices,
            1 + len(self.roles) if staged else 5,
            hidden=hidden,
            keep_bias=keep_bias,
            seed=seed,
        )

    @classmethod
    def of(cls, space: Any, **settings: Any) -> Policy:
        """A fresh policy for an NNI space; settings as for the constructor."""
        return cls(read_choices(space), **settings)

    def check(self, choices: Sequence[Choice]) -> None:
        """Refuse a space that this policy has no heads for.

        Raises
        ------
        UserError
            Naming the first choice that does not fit.
        """
        own = {choice.label: choice for choice in self.choices}
        for choice in choices:
            known = own.pop(choice.label, None)
            if known is None:
                raise UserError(
                    f"the policy does not decide '{choice.label}', a choice of the space; it was "
                    f"trained with {', '.join(c.label for c in self.choices)}"
                )
            if known.ordered != choice.ordered or (
                not known.ordered and not same_value(known.values, choice.values)
            ):
                raise UserError(
                    f"the policy knows '{choice.label}' with the values "
                    f"{list(known.values)}, the space has {list(choice.values)}"
                )
        if own:
            raise UserError(
                f"the policy decides '{next(iter(own))}', which is no choice of the space"
            )
        order = [choice.label for choice in choices]
        if order != [choice.label for choice in self.choices]:
            raise UserError(
                f"the policy decides the space's choices in another order: "
                f"{', '.join(choice.label for choice in self.choices)}"
            )

    def state(
        self,
        context: Context,
        sample: Mapping[str, Any],
        cost: Cost | None = None,
        *,
        choices: Sequence[Choice] | None = None,
        stem_stride: int = 1,
    ) -> State:
        """What the network sees.

        Parameters
        ----------
        context
            The task.
        sample
            The network to be changed: at first the teacher's.
        cost
            Its cost; None is the teacher's.
        choices
            Of the space at hand; None is the policy's own.
        stem_stride
            Of its networks.
        """
        return State(
            features(choices or self.choices, sample, self.roles, stem_stride),
            context.vector(cost),
        )

    def logits(self, states: Sequence[State]) -> tuple[list[Tensor], Tensor]:
        """Logits of each choice, (N, size), and values (N,); differentiable."""
        logits, values = self.network(
            torch.stack([state.features for state in states]),
            torch.stack([state.context for state in states]),
        )
        return logits, values

    def arrays(self, state: State) -> list[Any]:
        """Logits of one state as float64 arrays, for drawing."""
        with torch.no_grad():
            logits, _ = self.logits([state])
        return [head[0].double().numpy() for head in logits]

    def propose(
        self,
        space: Any,
        task: Task,
        budget: Budget | None = None,
        *,
        seed: int = 0,
        draws: int = 1,
        lipschitz: float | None = None,
    ) -> Sample:
        """An architecture for a task; nothing is trained, NNI need not run.

        Parameters
        ----------
        space
            An NNI space with the choices that the policy was trained on; its largest network is the
            teacher, unless the task names a smaller one.
        task
            What the network is for.
        budget
            What it may cost, tolerance included; None is the task's.
        seed
            Of the draws.
        draws
            So many networks are drawn, and the most probable of them is returned.
        lipschitz
            Local Lipschitz value of the teacher; None is the mean of those of the training.

        Returns
        -------
        dict
            A sample that keeps the budget and is smaller than the teacher.

        Raises
        ------
        UserError
            If the space does not fit the policy, or has no network within the budget.
        """
        from nni_robust.tasks import task_shape

        if draws < 1:
            raise UserError(f"draws: {draws} is not allowed; at least 1 is")
        choices = read_choices(space)
        self.check(choices)
        if budget is not None:
            task = dataclasses.replace(task, budget=budget)
        classes, shape = task_shape(task)
        options = options_for(space, task, shape, choices=choices)
        context = Context(
            task,
            classes,
            shape[-1],
            options.cost(options.teacher) if options.has_cost else None,
            self.lipschitz if lipschitz is None else lipschitz,
        )
        state = self.state(
            context, options.teacher, choices=choices, stem_stride=_stem_stride(space)
        )
        logits = self.arrays(state)
        rng = np.random.default_rng(derive_seed(seed, "propose"))
        found = [options.draw(logits, rng) for _ in range(draws)]
        return max(found, key=lambda draw: _log_prob(logits, draw)).sample


def choice_log_probs(
    logits: Sequence[Tensor], indices: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies under the masks that were in force when drawing.

    Parameters
    ----------
    logits
        For each choice (N, size).
    indices
        (N, choices), int64.
    masks
        (N, choices, width), bool.

    Returns
    -------
    tuple
        (N, choices) log-probabilities of the chosen, (N, choices) entropies in nats.
    """
    width = masks.shape[2]
    padded = torch.stack(
        [torch.nn.functional.pad(head, (0, width - head.shape[1])) for head in logits], dim=1
    )
    logs = torch.log_softmax(padded.masked_fill(~masks, -1e9), dim=2)
    chosen = logs.gather(2, indices[..., None]).squeeze(2)
    entropies = -(logs.exp() * logs.masked_fill(~masks, 0.0)).sum(dim=2)
    return chosen, entropies


def options_for(
    space: Any,
    task: Task,
    input_shape: Sequence[int],
    *,
    choices: Sequence[Choice] | None = None,
    minimum: Mapping[str, float] | None = None,
) -> Options:
    """The networks of a space that a task allows.

    Parameters
    ----------
    space
        An NNI model space, best on the meta device.
    task
        Its teacher bounds the numbers, its budget the cost. Where it names one of them, the network
        equal to the teacher is refused.
    input_shape
        (C, H, W) of a picture.
    choices
        Of the space, where they are known already.
    minimum
        See :class:`Options`.

    Raises
    ------
    UserError
        If the task's teacher is not in the space, or nothing is left to choose.
    """
    closed_form = hasattr(space, "cost")

    def closed(sample: Sample) -> Cost:
        cost: Cost = space.cost(sample, input_shape)
        return cost

    def measured(sample: Sample) -> Cost:
        with torch.device("meta"):
            return measure_cost(space.freeze(sample), input_shape)

    cost: Callable[[Sample], Cost] | None = closed if closed_form else None
    if not closed_form and task.budget is not None:
        cost = measured
    return Options(
        read_choices(space) if choices is None else choices,
        cost=cost,
        budget=task.budget,
        teacher=teacher_sample(space, task),
        minimum=minimum,
        changed=task.teacher is not None or task.budget is not None,
        contains=lambda sample: space.check_contains(sample) is None,
        closed_form=closed_form,
    )


def teacher_sample(space: Any, task: Task) -> Sample | None:
    """The task's teacher as a sample of the space; None where it is the space's largest network.

    A teacher of another kind than the space's networks bounds nothing.
    """
    if task.teacher is None or task.teacher.architecture.startswith("robustbench:"):
        return None
    from nni_robust.architecture import load_architecture
    from nni_robust.architecture.scaling import below_teacher
    from nni_robust.architecture.space import open_space

    architecture = load_architecture(task.teacher.architecture)
    own = open_space(architecture.space, architecture.space_args, architecture.num_classes)
    if not hasattr(own, "below") or type(own) is not type(space):
        return None
    labels = list(space.simplify())
    blocks = any(label.endswith("/block") for label in labels)
    sample = below_teacher(architecture, search_blocks=blocks).teacher
    return {label: sample[label] for label in labels if label in sample}


def _stem_stride(space: Any) -> int:
    return int(getattr(getattr(space, "config", None), "stem_stride", 1))


def _log_prob(logits: Sequence[Any], draw: Draw) -> float:
    total = 0.0
    for head, index, mask in zip(logits, draw.indices, draw.mask, strict=True):
        open_ = head[mask[: len(head)]]
        largest = open_.max()
        total += float(head[index] - largest - np.log(np.exp(open_ - largest).sum()))
    return total
