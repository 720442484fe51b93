"""Wide-spectrum search on a space of one's own, or of NNI's hub: good at many attack strengths."""

from typing import Any

import torch
from common import TASK, TRAIN, make_space, read_arguments, run, show

from nni_robust.evaluators import AdversarialTraining
from nni_robust.objective import SpectrumObjective
from nni_robust.strategies import WideSpectrumSearch

OBJECTIVE: dict[str, Any] = {"strengths": [0.05, 0.1, 0.15], "weights": [1, 2, 3]}


def main() -> None:
    """Search with shared weights, fine-tune the best over the spectrum, print it."""
    options = read_arguments(__doc__ or "", space=["own", "hub"])
    evaluator: Any = AdversarialTraining(
        task=TASK,
        train=TRAIN,
        attacks=["pgd3"],
        strengths=OBJECTIVE["strengths"],
        strength_weights=OBJECTIVE["weights"],
        store=options.store,
    )
    strategy = WideSpectrumSearch(
        candidates=1,
        epochs=2,
        warmup={"archs": 3},
        objective=OBJECTIVE,
        measure={"steps": 1, "pictures": 32, "recalibrate_batches": 1},
        finalists=2,
        seed=0,
    )
    result = run(make_space(options.space), evaluator, strategy, strategy.trials, options)
    finalists = strategy.found[0]["search"]["finalists"]
    # The objective is an object of its own, and can judge any losses.
    objective = SpectrumObjective(tuple(OBJECTIVE["strengths"]), tuple(OBJECTIVE["weights"]))
    judged = [float(objective.value(torch.tensor(row["losses"]))) for row in finalists]
    show({**result, "objective": [row["objective"] for row in finalists], "judged": judged})


if __name__ == "__main__":
    main()
