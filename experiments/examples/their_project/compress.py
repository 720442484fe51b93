"""RLCompressor on a space of one's own, or of NNI's hub, within a budget of MACs."""

from typing import Any

from common import TASK, TRAIN, make_space, read_arguments, run, show

from nni_robust.evaluators import AdversarialTraining
from nni_robust.strategies import RLCompressor

#: Multiply-accumulates for one picture; about half of what the largest network needs.
BUDGETS = {"own": "120k", "hub": "150k"}


def main() -> None:
    """Search, print the best network."""
    options = read_arguments(__doc__ or "", space=["own", "hub"])
    evaluator: Any = AdversarialTraining(
        task=TASK, train=TRAIN, attacks=["fgsm"], store=options.store
    )
    strategy = RLCompressor(updates=2, rollouts=2, budget=BUDGETS[options.space], seed=0)
    result = run(make_space(options.space), evaluator, strategy, strategy.trials, options)
    winner = strategy.winner()
    assert winner is not None
    show({**result, "winner": winner["sample"], "macs": winner["cost"]})


if __name__ == "__main__":
    main()
