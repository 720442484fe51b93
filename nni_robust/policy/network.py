"""The policy's network: a bidirectional LSTM over positions, and a head for every choice.

After the figures of RC-NAS (Wang et al., KDD 2024): features of a stage are encoded, an LSTM runs
over the stages in both directions, its states and the numbers of the task go through a perceptron
of each stage, whose result feeds the heads. Sizes are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nni_robust.data.seeding import derive_seed
from nni_robust.policy.choices import Choice
from nni_robust.policy.context import CONTEXT

__all__ = ["PolicyNetwork"]

#: Up to that many positions each have a perceptron of their own; more share one.
_OWN = 8


class PolicyNetwork(nn.Module):
    """Logits of all choices, and the value of the state.

    Parameters
    ----------
    choices
        What is decided.
    inputs
        Features of a position.
    hidden
        Width of all layers.
    keep_bias
        Added to the logits of ordered choices at the start: ``keep_bias * k/16`` at the ratio k/16,
        so that early networks are not absurdly small.
    seed
        Of the initial weights.
    """

    keep: Tensor

    def __init__(
        self,
        choices: Sequence[Choice],
        inputs: int,
        *,
        hidden: int = 64,
        keep_bias: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        positions = 1 + max(choice.position for choice in choices)
        self.places = [choice.position for choice in choices]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "policy"))
            self.encode = nn.Linear(inputs, hidden)
            self.lstm = nn.LSTM(hidden, hidden, bidirectional=True, batch_first=True)
            self.states = nn.ModuleList(
                nn.Sequential(
                    nn.Linear(2 * hidden + CONTEXT, hidden),
                    nn.Tanh(),
                    nn.Linear(hidden, hidden),
                    nn.Tanh(),
                )
                for _ in range(positions if positions <= _OWN else 1)
            )
            self.heads = nn.ModuleList(nn.Linear(hidden, choice.size) for choice in choices)
            self.critic = nn.Linear(hidden, 1)
        for head in self.heads:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)
        with torch.no_grad():
            for choice, head in zip(choices, self.heads, strict=True):
                if choice.ordered:
                    ratios = torch.arange(1, choice.size + 1) / choice.size
                    head.bias.copy_(keep_bias * ratios)  # type: ignore[operator]
                else:
                    head.bias.copy_(torch.tensor(choice.prior).clamp_min(1e-6).log())  # type: ignore[operator]

    def forward(self, features: Tensor, context: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits and values.

        Parameters
        ----------
        features
            (N, positions, F).
        context
            (N, CONTEXT).

        Returns
        -------
        tuple
            For each choice (N, size of its head); (N,) values.
        """
        states, _ = self.lstm(torch.tanh(self.encode(features)))
        context = context[:, None].expand(-1, states.shape[1], -1)
        states = torch.cat([states, context], dim=2)
        if len(self.states) == 1:
            states = self.states[0](states)
        else:
            states = torch.stack(
                [net(states[:, place]) for place, net in enumerate(self.states)], dim=1
            )
        logits = [
            head(states[:, place]) for head, place in zip(self.heads, self.places, strict=True)
        ]
        return logits, self.critic(states.mean(dim=1)).squeeze(1)
